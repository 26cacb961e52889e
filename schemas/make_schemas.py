"""The JSON Schemas beside this file, made of records and requests: `python schemas/make_schemas.py` writes them.

Titles and descriptions are the docstrings of the records: the text before `Attributes:` describes the object, the
attributes describe its keys.

A schema that changed needs a new version of its format. `--unpublished` lets the version stay, for one that no release
has written yet.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from descriptions import described
from service_schemas import answer_schema, http_schema
from versions import changed_without_version, write_digests

from adapter_export.bundle.chosen_form import MeasuredForm
from adapter_export.bundle.signature_claim import SignatureClaim
from adapter_export.format.adapter_files import AdapterDocument
from adapter_export.format.check_report import CheckReport, SelfTestReport
from adapter_export.format.derivation import Derivation
from adapter_export.format.generation import ChatTemplates, GoldenChats
from adapter_export.format.golden_batches import GoldenBatches
from adapter_export.format.golden_texts import GoldenTexts
from adapter_export.format.manifest import Manifest
from adapter_export.format.media import GoldenMedia
from adapter_export.format.records import (
    Different,
    NotEmpty,
    NotNull,
    OneOf,
    Pattern,
    at_least_one_of,
    hints_of,
    members_of,
    required_keys,
    split_hint,
)
from adapter_export.format.site_map_json import SiteMapDocument
from adapter_export.interval import Interval
from adapter_export.onnx_backend.base.base_identity import BaseIdentity
from adapter_export.plugins.lab.comparison import ComparisonDocument

RECORDS: Mapping[str, type] = {
    "adapter-graph": AdapterDocument,
    "base-identity": BaseIdentity,
    "bundle-manifest": Manifest,
    "chat-templates": ChatTemplates,
    "check-report": CheckReport,
    "comparison": ComparisonDocument,
    "derivation": Derivation,
    "golden-batches": GoldenBatches,
    "golden-chats": GoldenChats,
    "golden-media": GoldenMedia,
    "golden-texts": GoldenTexts,
    "measured-form": MeasuredForm,
    "self-test": SelfTestReport,
    "signature-claim": SignatureClaim,
    "site-map": SiteMapDocument,
}
"""Records by the name of their schema."""

Schema = dict[str, Any]

SERVICES: Mapping[str, Callable[[], Schema]] = {"answer": answer_schema, "http": http_schema}
"""Schemas without records, by name."""

NAMES = (*RECORDS, *SERVICES)
"""All schemas."""

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_SHORT_LIST = re.compile(r"\[\n([^\[\]{}]+)\n *\]")


def schema_text(name: str) -> str:
    """The text of `schemas/<name>.schema.json`."""
    definitions: dict[str, Schema] = {}
    found = _object(RECORDS[name], definitions) if name in RECORDS else SERVICES[name]()
    definitions |= found.pop("$defs", {})
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{name}.schema.json",
        **found,
        "$defs": {key: definitions[key] for key in sorted(definitions)},
    }
    return _SHORT_LIST.sub(_in_one_line, json.dumps(schema, indent=2, ensure_ascii=False)) + "\n"


def _in_one_line(found: re.Match[str]) -> str:
    """A list of strings or numbers, if it is short."""
    text = f"[{' '.join(found[1].split())}]"
    return text if len(text) <= 100 else found[0]


def _object(kind: type, definitions: dict[str, Schema]) -> Schema:
    """The schema of a record."""
    description, of_keys = described(kind)
    defaults = {field.name: field.default for field in fields(kind)}
    properties: dict[str, Schema] = {}
    for key, hint in hints_of(kind).items():
        properties[key] = {"description": of_keys[key]} if key in of_keys else {}
        properties[key] |= _schema(hint, definitions)
        if isinstance(defaults[key], str | int | float):
            properties[key]["default"] = defaults[key]
    needed = [key for key in properties if key in required_keys(kind)]
    either = at_least_one_of(kind)
    return {
        "title": re.sub(r"(?<=[a-z])(?=[A-Z])", " ", _name(kind)).capitalize(),
        "description": description,
        "type": "object",
        "properties": properties,
        **({"required": needed} if needed else {}),
        **({"anyOf": [{"required": [key]} for key in either]} if either else {}),
        **getattr(kind, "SCHEMA_RULES", {}),
        "additionalProperties": False,
    }


def _schema(hint: Any, definitions: dict[str, Schema]) -> Schema:
    kind, rules = split_hint(hint)
    members = members_of(kind)
    if any(isinstance(rule, NotNull) for rule in rules):
        kind, *others = (member for member in members if member is not type(None))
        members = (kind, *others)
    if len(members) > 1:
        schemas = [_schema(member, definitions) for member in members]
        if all(schema.keys() == {"type"} for schema in schemas):
            return {"type": [schema["type"] for schema in schemas]}
        return {"anyOf": schemas}
    if get_origin(kind) is Annotated:
        return _schema(kind, definitions)
    schema = _plain(kind, definitions)
    for rule in rules:
        if isinstance(rule, Pattern):
            definition = {"description": rule.expected, "type": "string", "pattern": f"^({rule.regex})$"}
            definitions[rule.name] = definition
            return {"$ref": f"#/$defs/{rule.name}"}
        if not isinstance(rule, NotNull):
            schema |= _rule(rule, schema["type"])
    return schema


def _rule(rule: object, json_type: str) -> Schema:
    if isinstance(rule, Interval):
        high = {"exclusiveMaximum" if rule.half_open else "maximum": rule.high} if rule.high != float("inf") else {}
        return {"minimum": rule.low, **high}
    if isinstance(rule, OneOf):
        return {"enum": list(rule.values)}
    if isinstance(rule, Different):
        return {"uniqueItems": True}
    assert isinstance(rule, NotEmpty)
    return {{"string": "minLength", "array": "minItems", "object": "minProperties"}[json_type]: 1}


def _plain(kind: Any, definitions: dict[str, Schema]) -> Schema:
    if is_dataclass(kind) and isinstance(kind, type):
        name = _name(kind)
        name = name[0].lower() + name[1:]
        if name not in definitions:
            definitions[name] = {}  # a record may hold itself
            definitions[name] = _object(kind, definitions)
        return {"$ref": f"#/$defs/{name}"}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin is tuple and arguments[-1] is not Ellipsis:
        items = [_schema(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is Mapping:
        names = _schema(arguments[0], definitions)
        values = {"additionalProperties": _schema(arguments[1], definitions)} if arguments[1] is not Any else {}
        return {"type": "object", **({"propertyNames": names} if names != {"type": "string"} else {}), **values}
    return {} if kind is Any else {"type": _TYPES[kind]}


def _name(kind: type) -> str:
    return kind.__name__.removesuffix("Record").removesuffix("Document")


def main() -> None:
    """Write all schemas, and what each version allows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unpublished", action="store_true", help="no release has the versions of changed schemas")
    arguments = parser.parse_args()
    texts = {name: schema_text(name) for name in NAMES}
    changed = changed_without_version(texts)
    if changed and not arguments.unpublished:
        sys.exit(
            f"error: schemas changed without a version: {', '.join(changed)}. Raise the version in its module: "
            "the minor one for a new key, the major one for what readers of today would misread. Give --unpublished if "
            "no release has it."
        )
    for name, text in texts.items():
        (Path(__file__).parent / f"{name}.schema.json").write_text(text, encoding="utf-8")
    write_digests(texts)


if __name__ == "__main__":
    main()
