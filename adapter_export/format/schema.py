"""Documents held against the JSON Schemas that are published with the package."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from adapter_export.errors import FormatError

_LONGEST_VALUE = 80


def schema_text(name: str) -> str:
    """The text of `schemas/<name>.schema.json`."""
    return (_folder() / f"{name}.schema.json").read_text(encoding="utf-8")


def validate(document: object, name: str, where: object) -> None:
    """Hold a document against a schema.

    Args:
        document: parsed JSON.
        name: the schema, such as `adapter-graph`.
        where: the file, for messages.

    Raises:
        FormatError: it does not conform; the message gives the JSON path of the first fault.
    """
    faults = sorted(
        _validator(name).iter_errors(document), key=lambda fault: [str(part) for part in fault.absolute_path]
    )
    if faults:
        raise _describe(faults[0], len(faults) - 1, name, where)


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = json.loads(schema_text(name))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def _folder() -> Traversable:
    """In a wheel the schemas lie in the package; in a checkout beside it."""
    packaged = resources.files("adapter_export") / "schemas"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "schemas"


def _describe(fault: ValidationError, others: int, name: str, where: object) -> FormatError:
    more = f" (and {others} more)" if others else ""
    return FormatError(
        f"breaks the format{more}",
        where=f"{where}, `{fault.json_path}`",
        found=_found(fault),
        expected=_expected(fault),
        fix=f"correct it by `schemas/{name}.schema.json`",
    )


def _found(fault: ValidationError) -> str:
    if fault.validator in {"required", "additionalProperties"}:
        return str(fault.message)
    return _short(fault.instance)


def _expected(fault: ValidationError) -> str:
    schema: Any = fault.schema
    if fault.validator in {"required", "additionalProperties"}:
        return "the keys " + ", ".join(f"`{key}`" for key in schema.get("properties", schema.get("required", ())))
    rule = f"{fault.validator} {_short(fault.validator_value)}"
    return f"{schema['description'].rstrip('.')} ({rule})" if "description" in schema else rule


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= _LONGEST_VALUE else f"`{text[:_LONGEST_VALUE]}…`"
