"""A document is what its published schema says, and what its record says: both come from one declaration."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from jsonschema_rs import Draft202012Validator
from make_schemas import RECORDS

from adapter_export.errors import FormatError
from adapter_export.format.records import record_from_json

SCHEMAS = Path(__file__).parents[2] / "schemas"


@cache
def validator(name: str) -> Draft202012Validator:
    """The published schema `schemas/<name>.schema.json`, in the hands of the library `jsonschema-rs`."""
    return Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")))


def validate(document: object, name: str) -> None:
    """Check a document by its schema and by its record."""
    validator(name).validate(document)
    record_from_json(RECORDS[name], document)


def verdicts(document: object, name: str) -> tuple[bool, bool]:
    """Return whether the schema and the reader accept a document."""
    try:
        record_from_json(RECORDS[name], document)
    except FormatError:
        return validator(name).is_valid(document), False
    return validator(name).is_valid(document), True
