"""Random JSON schemas of the keywords that llguidance follows, and whose documents are short."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

_NAMES = ("name", "größe", "is open", "x", 'quoted "key"', "日", "a/b", "count")
_VALUES = ("red", "Žluť", 3, -1.5, None, True, {"a": [1]}, [], "{{ 7*7 }}", "\n")


def random_schema(seed: int) -> Schema:
    """A schema of an object; equal seeds give equal schemas."""
    dice = random.Random(seed)
    schema = _object(dice, 2)
    if dice.random() < 0.3:
        schema["properties"]["again"] = {"$ref": "#/$defs/part"}
        schema["$defs"] = {"part": _any(dice, 1)}
    return schema


def _any(dice: random.Random, depth: int) -> Schema:
    forms = [_string, _integer, _number, _boolean, _choice, _constant]
    forms += [_object, _array, _tuple, _either] if depth else []
    return dice.choice(forms)(dice, depth)


def _object(dice: random.Random, depth: int) -> Schema:
    names = dice.sample(_NAMES, dice.randint(1, 4))
    properties = {name: _any(dice, depth - 1) for name in names}
    required = [name for name in names if dice.random() < 0.8]
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": required} if required else found


def _array(dice: random.Random, depth: int) -> Schema:
    least = dice.randint(0, 2)
    return {
        "type": "array",
        "items": _any(dice, depth - 1),
        "minItems": least,
        "maxItems": least + dice.randint(0, 2),
    }


def _tuple(dice: random.Random, depth: int) -> Schema:
    items = [_any(dice, depth - 1) for _ in range(dice.randint(1, 2))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _either(dice: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(dice, depth - 1), _any(dice, depth - 1)]}


def _string(dice: random.Random, _: int) -> Schema:
    if dice.random() < 0.4:
        patterns = ("^[a-c]{2,4}$", "^(ja|nein|é{1,2})$", r"^\d{4}-\d{2}$", "^[^ ]{1,3}$")
        return {"type": "string", "pattern": dice.choice(patterns)}
    if dice.random() < 0.2:
        return {"type": "string", "format": dice.choice(["date", "ipv4", "uuid", "time"])}
    return {"type": "string", "minLength": dice.randint(0, 2), "maxLength": dice.randint(2, 8)}


def _integer(dice: random.Random, _: int) -> Schema:
    least = dice.randint(-50, 50)
    found: Schema = {"type": "integer", "minimum": least, "maximum": least + dice.randint(0, 5000)}
    return {**found, "multipleOf": 1} if dice.random() < 0.2 else found


def _number(dice: random.Random, _: int) -> Schema:
    return {"type": "number", "exclusiveMinimum": -0.5, "maximum": dice.choice([0.25, 1, 1e3])}


def _boolean(dice: random.Random, _: int) -> Schema:
    return {"type": dice.choice(["boolean", "null", ["boolean", "null"]])}


def _choice(dice: random.Random, _: int) -> Schema:
    return {"enum": dice.sample(_VALUES, dice.randint(1, 4))}


def _constant(dice: random.Random, _: int) -> Schema:
    return {"const": dice.choice(_VALUES)}
