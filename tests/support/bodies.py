"""Answers and bodies of HTTP, compared with their published schemas by the library `jsonschema`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

SCHEMAS = Path(__file__).parents[2] / "schemas"
Body = Literal["answer", "call", "rows", "adapters", "completions", "chat", "error"]
"""An answer to one row, or a definition of `http.schema.json`."""


def refusal(document: object, body: Body) -> str | None:
    """Why a document is not what the schema says; `None` if it is."""
    error = best_match(_validator(body).iter_errors(document))
    return None if error is None else f"{error.json_path}: {error.message}"


def checked(document: Any, body: Body) -> Any:
    """A document that must be what the schema says."""
    assert refusal(document, body) is None, (refusal(document, body), document)
    return document


@cache
def _validator(body: Body) -> Draft202012Validator:
    names = ("answer", "http", "bundle-manifest")
    texts = {name: (SCHEMAS / f"{name}.schema.json").read_text("utf-8") for name in names}
    known = {f"{name}.schema.json": Resource.from_contents(json.loads(text)) for name, text in texts.items()}
    place = "answer.schema.json" if body == "answer" else f"http.schema.json#/$defs/{body}"
    return Draft202012Validator({"$ref": place}, registry=Registry().with_resources(known.items()))
