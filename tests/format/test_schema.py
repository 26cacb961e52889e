"""The published schemas: valid, described, and in step with the code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from adapter_export.errors import FormatError
from adapter_export.format.schema import schema_text, validate
from adapter_export.graph.graph import HEAD_VALUES, SITE_VALUES
from adapter_export.graph.ops import OPS

SCHEMAS = sorted(path.name.removesuffix(".schema.json") for path in (Path(__file__).parents[2] / "schemas").iterdir())


def properties(schema: Any, place: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of every object in a schema, with its place."""
    if isinstance(schema, dict):
        for name, value in schema.get("properties", {}).items():
            yield f"{place}.{name}", value
        for key, value in schema.items():
            yield from properties(value, f"{place}.{key}")


@pytest.mark.parametrize("name", SCHEMAS)
def test_is_a_schema_of_draft_2020_12(name: str) -> None:
    schema = json.loads(schema_text(name))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", ["adapter-graph", "bundle-manifest"])
def test_describes_every_property(name: str) -> None:
    schema = json.loads(schema_text(name))
    for place, value in properties(schema):
        target = schema["$defs"][value["$ref"].rsplit("/", 1)[1]] if "$ref" in value else value
        told = {"description", "title", "const", "items"} & (value.keys() | target.keys())
        assert told, place


def test_knows_the_ops_and_values_of_the_language() -> None:
    definitions = json.loads(schema_text("adapter-graph"))["$defs"]
    node = definitions["node"]["properties"]
    assert node["op"]["enum"] == list(OPS)
    assert set(node["attributes"]["properties"]) == {name for op in OPS.values() for name in op.attributes}
    assert set(node["parameters"]["properties"]) == {spec.role for op in OPS.values() for spec in op.parameters}
    assert definitions["siteGraph"]["properties"]["inputs"]["items"]["enum"] == list(SITE_VALUES)
    assert definitions["headGraph"]["properties"]["inputs"]["items"]["enum"] == list(HEAD_VALUES)


def test_names_the_place_of_a_fault() -> None:
    with pytest.raises(FormatError) as caught:
        validate({"version": "1.0.0", "name": "a"}, "adapter-graph", "file.json")
    assert caught.value.where == "file.json, `$`"
    assert caught.value.what == "breaks the format (and 4 more)"


def test_long_values_are_cut() -> None:
    with pytest.raises(FormatError) as caught:
        validate({"version": "1.0.0" * 1000}, "adapter-graph", "file.json")
    assert len(str(caught.value)) < 1000
