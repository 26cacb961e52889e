"""The published schemas: made of the records, valid, described, and of the reader's opinion on every document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from make_schemas import NAMES, RECORDS, schema_text
from versions import VERSIONS, read_digests, schema_digest

from adapter_export.errors import FormatError
from adapter_export.format.adapter_files import AdapterDocument
from adapter_export.format.files import canonical_json
from adapter_export.format.manifest import Manifest
from adapter_export.format.records import record_from_json
from adapter_export.graph.graph import HEAD_VALUES, SITE_VALUES
from adapter_export.graph.ops import OPS
from schemas import SCHEMAS, verdicts

Document = dict[str, Any]


def test_each_schema_has_a_file() -> None:
    assert sorted(path.name for path in SCHEMAS.glob("*.schema.json")) == sorted(
        f"{name}.schema.json" for name in NAMES
    )


@pytest.mark.parametrize("name", VERSIONS)
def test_a_changed_schema_has_a_new_version(name: str) -> None:
    recorded = read_digests()[name].get(VERSIONS[name])
    assert recorded == schema_digest(schema_text(name)), "raise the version, and run `python schemas/make_schemas.py`"


@pytest.mark.parametrize("name", NAMES)
def test_every_schema_with_a_version_is_recorded(name: str) -> None:
    assert ("version" in json.loads(schema_text(name)).get("properties", {})) == (name in VERSIONS)


def test_rules_change_a_digest_and_prose_does_not() -> None:
    schema = json.loads(schema_text("adapter-graph"))
    digest = schema_digest(json.dumps(schema))
    schema["description"] += " More."
    schema["properties"]["version"]["description"] = "Other words."
    assert schema_digest(json.dumps(schema)) == digest
    schema["properties"]["description"] = {"type": "string"}
    assert schema_digest(json.dumps(schema)) != digest


@pytest.mark.parametrize("name", NAMES)
def test_schema_files_match_the_records(name: str) -> None:
    found = (SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")
    assert found == schema_text(name), "run `python schemas/make_schemas.py`"


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_valid_draft_2020_12(name: str) -> None:
    schema = json.loads(schema_text(name))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)


def objects(schema: Any, place: str = "$") -> Iterator[tuple[str, Document]]:
    """Every object with properties in a schema, with its place."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield place, schema
        for key, value in schema.items():
            yield from objects(value, f"{place}.{key}")


@pytest.mark.parametrize("name", NAMES)
def test_schemas_describe_every_object_and_property(name: str) -> None:
    for place, schema in objects(json.loads(schema_text(name))):
        assert schema["title"], place
        assert schema["description"].endswith("."), place
        for key, value in schema["properties"].items():
            assert value.get("description", "").endswith("."), f"{place}.{key}"


def test_graph_schema_lists_ops_and_values() -> None:
    definitions = json.loads(schema_text("adapter-graph"))["$defs"]
    node = definitions["node"]["properties"]
    assert node["op"]["enum"] == list(OPS)
    assert set(definitions["attributes"]["properties"]) == {name for op in OPS.values() for name in op.attributes}
    roles = {spec.role for op in OPS.values() for spec in op.parameters}
    assert set(node["parameters"]["propertyNames"]["enum"]) == roles
    assert definitions["siteGraph"]["properties"]["inputs"]["items"]["enum"] == list(SITE_VALUES)
    assert definitions["headGraph"]["properties"]["inputs"]["items"]["enum"] == list(HEAD_VALUES)


def test_reader_names_the_place_of_a_fault() -> None:
    with pytest.raises(FormatError) as caught:
        record_from_json(AdapterDocument, {"version": "1.0.0", "name": "a"})
    assert caught.value.where == "`$`"
    assert caught.value.found == "no key `kind`; no key `base`; no key `graphs`; no key `sites`; no key `weights`"


def test_long_values_are_cut() -> None:
    with pytest.raises(FormatError) as caught:
        record_from_json(AdapterDocument, {**dict.fromkeys(RECORDS), "version": "1.0.0" * 1000})
    assert len(str(caught.value)) < 1000


# The same opinion on documents with one value exchanged, left out or added, at every place in turn.

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    1,
    -1,
    3.0,
    2.5,
    1e300,
    [],
    {},
    [1],
    {"a": 1},
    ["a"],
    ["a", "a"],
    ["a", 1],
)
ODD_VALUES += ([-1], [1, 2], {"a": -1.5}, {"a": "a"}, "", "text", "a" * 64, "A" * 64, "1.0.0", "mask", "h", "y", "head")
ODD_VALUES += (
    "../a",
    "a/b",
    "/a",
    "a//b",
    "C:a",
    "a\\b",
    ".",
    "a/./b",
    "a/..b",
    "..a",
    "nan",
    "embedding",
    "regression",
)
ODD_VALUES += ("linear", "relu", "fp16")


def places(value: Any, *path: str | int) -> Iterator[tuple[str | int, ...]]:
    """The path of every value of a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, *path, key)


def at(document: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def mutants(document: Document) -> Iterator[tuple[str, Document]]:
    """The document with one value exchanged, left out or added, at every place in turn: in place, and taken back."""
    for path in list(places(document))[1:]:
        *parents, last = path
        holder = at(document, tuple(parents))
        before, value = holder.copy(), holder[last]
        for odd in ODD_VALUES:
            holder[last] = odd
            yield f"{path} = {odd!r}"[:200], document
        del holder[last]
        yield f"{path} left out", document
        holder.clear()
        holder.update(before) if isinstance(holder, dict) else holder.extend(before)
        if isinstance(value, dict):
            value["surplus"] = 1
            yield f"{path} with more", document
            del value["surplus"]


NODE = {"op": "scale", "inputs": ["h"], "output": "r", "attributes": {"factor": 0.5}}
GRAPH = {
    "inputs": ["h"],
    "parameters": {"w": ["d", 2]},
    "nodes": [NODE],
    "result": "r",
    "replaces": "y",
    "shared": ["w"],
}
HEAD_NODE = {"op": "first_token", "inputs": ["hidden"], "output": "r", "parameters": {"weight": "w"}}
HEAD = {"inputs": ["hidden", "mask"], "parameters": {}, "nodes": [HEAD_NODE], "result": "r"}
ADAPTER: Document = {
    "version": "1.0.0",
    "checksum": "0" * 64,
    "name": "a",
    "kind": "custom",
    "base": {"fingerprint": "sha256:0"},
    "graphs": {"one": GRAPH},
    "sites": [{"site": "layers.0.ffn", "graph": "one", "widths": {"d": 2}}],
    "head": {"graph": HEAD, "widths": {"d": 2}, "task": {"type": "token", "labels": ["no", "yes"]}},
    "training": {"epochs": 3},
    "weights": {"file": "weights.safetensors", "sha256": "0" * 64},
}
VALUES = {"h": "a", "x": "b", "u": "c", "y": "d"}
SITE_MAP: Document = {
    "version": "1.0.0",
    "sites": {
        "layers.0.ffn": {"role": "ffn", "layer": 0, "torch": VALUES, "onnx": {"h": "a", "x": "b"}},
        "layers.0.ffn.up": {
            "role": "linear",
            "layer": 0,
            "parts": {"up": [0, 4]},
            "blocks": 2,
            "onnx": {"h": "a", "u": "b"},
        },
        "embeddings": {"role": "embeddings", "torch": {"h": "a"}},
        "layers.1.ffn": None,
    },
    "final": {"torch": "a"},
}
BUDGET = {"absolute": 1e-5, "reason": "why"}
MASKS = {"agree": 0, "only_found": 1, "only_expected": 0}
WORST = {"index": [0, 1], "found": "nan", "expected": 1.5, "ulp": None}
FLIP = {"row": 0, "found": 1, "expected": 2, "margin": 0.5, "within_budget": False}
COMPARISON: Document = {
    **{"verdict": "failed", "faults": ["NaN"], "elements": 2, "compared": 1, "absolute": 1.0, "relative": 2.0},
    **{"ulp": 3, "cosine": -0.5, "budget": BUDGET, "ratio": 5.0, "nan": MASKS, "inf": MASKS, "worst": WORST},
    "top_class": {"rows": 2, "agree": 1, "flips": [FLIP]},
}
STEP = {"origin": "o", "operators": "Add", "line": None, "depth": 2, "witness": {"found": 0.5, "expected": 0.0}}
OUTPUT: Document = {
    **{"kind": "output", "name": "logits", "against": "golden", "adapter": None, "case": "one", "axes": {"batch": 1}},
    **{"variant": "bank", "level": "all", "part": "all", "mixed": True, "path": None, "node": None, **COMPARISON},
}
SITE: Document = {**OUTPUT, "kind": "site", "name": "s", "adapter": "a", "worst": None, "top_class": None}
EFFECT = {
    "adapter": "a",
    "output": "hidden",
    "change": 0.5,
    "beyond_rounding": True,
    "sites": {"layers.0.ffn": 0.0},
    "idle": ["layers.0.ffn"],
}
AGREEMENT = {"adapter": "a", "output": "o", "rows": 2, "agree": 1, "absolute": 0.5, "scale": 2.0, "cosine": None}
REPORT: Document = {
    **{"version": "1.0.0", "bundle": "b", "base": "sha256:0", "against": None, "reference": "torch", "runtime": "ort"},
    **{"scope": "quick", "verdict": "failed", "summary": "failed"},
    **{"coverage": {"planned": 2, "compared": 1, "elements": 4, "left_out": ["x"]}},
    "findings": [
        {
            **{"check": "output", "subject": "s", "claim": "c", "status": "tested", "where": "w", "detail": "d"},
            **{"coverage": [{"what": "words", "done": 2, "of": None}], "ratio": 0.5},
            "measurements": [OUTPUT, SITE, {**SITE, "kind": "node", "node": {**STEP, "cumulative": None}}],
        }
    ],
    "failures": [
        {
            **{
                "adapter": "a",
                "case": "one",
                "output": None,
                "faults": ["NaN"],
                "ratio": 2.5,
                "worst": None,
                "culprit": None,
            },
            **{"levels_failed": ["all"], "levels_passed": [], "command": "check", "variant": "baked", "mixed": False},
            "variants_failed": ["slots"],
        }
    ],
    "agreements": {"original": "torch", "inputs": "texts", "results": [AGREEMENT]},
    "effects": [EFFECT],
}


@pytest.mark.parametrize(
    ("name", "document"), [("adapter-graph", ADAPTER), ("site-map", SITE_MAP), ("check-report", REPORT)]
)
def test_reader_and_schema_agree_on_every_mutant(name: str, document: Document) -> None:
    agree_on_mutants(name, document)


def test_reader_and_schema_agree_on_every_mutant_of_a_manifest(manifest: Manifest) -> None:
    document: Document = json.loads(canonical_json({**asdict(manifest), "checksum": "0" * 64}))
    document["adapters"][0]["task"]["labels"] = document["adapters"][0]["task"]["labels"][:1]
    document["files"] = document["files"][:1]
    agree_on_mutants("bundle-manifest", document)


def agree_on_mutants(name: str, document: Document) -> None:
    assert verdicts(document, name) == (True, True)
    accepted = []
    for what, changed in mutants(document):
        by_schema, by_reader = verdicts(changed, name)
        assert by_reader == by_schema, what
        accepted.append(by_reader)
    assert len(accepted) > 500
    assert accepted.count(True) > 50
