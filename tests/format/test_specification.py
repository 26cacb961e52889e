"""`docs/reference/format.md` matches the code: its tables are the code's, its worked example is a valid adapter."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_schemas import schema_text

from adapter_export import errors
from adapter_export.format.adapter_files import ADAPTER_VERSION, read_adapter, write_adapter
from adapter_export.format.manifest_json import MANIFEST_VERSION
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import AdapterGraph, interpret
from adapter_export.graph.numpy_lowering import LOWERINGS
from adapter_export.graph.ops import OPS, OpSpec

DOCUMENT = (Path(__file__).parents[2] / "docs/reference/format.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """The text of the fenced block behind the mark of that name."""
    found = re.search(rf"<!-- worked: {re.escape(name)} -->\n```\w+\n(.*?\n)```\n", DOCUMENT, re.DOTALL)
    assert found is not None, name
    return found[1]


def rows(start: str, end: str) -> list[list[str]]:
    """The cells of the table between two texts, without its two head lines."""
    part = DOCUMENT.split(start, 1)[1].split(end, 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture
def worked(tmp_path: Path) -> Path:
    """The worked example, as a stranger would copy it out of the document."""
    folder = tmp_path / "worked"
    folder.mkdir()
    (folder / "adapter_graph.json").write_text(block("adapter_graph.json"), encoding="utf-8")
    (folder / "weights.safetensors").write_bytes(base64.b64decode(block("weights.safetensors")))
    return folder


def test_the_worked_example_is_an_adapter(worked: Path) -> None:
    adapter, tensors = read_adapter(worked), json.loads(block("tensors"))
    assert {name: tensor.tolist() for name, tensor in adapter.weights.items()} == tensors


def test_the_worked_example_is_canonical(worked: Path, tmp_path: Path) -> None:
    write_adapter(read_adapter(worked), tmp_path / "again")
    for name in ("adapter_graph.json", "weights.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (worked / name).read_bytes()


def evaluate(graph: AdapterGraph, adapter: Adapter, owner: str, given: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {name: tensor.astype(np.float64) for name, tensor in adapter.parameters(owner).items()}
    inputs = {name: np.array(given[name]) for name in graph.inputs}
    return {name: value.tolist() for name, value in interpret(graph, LOWERINGS, inputs, parameters).items()}


def test_the_worked_example_gives_the_values(worked: Path) -> None:
    adapter, values = read_adapter(worked), json.loads(block("values"))
    assert adapter.head is not None
    (graph,) = adapter.graphs.values()
    assert evaluate(graph, adapter, "layers.0.ffn", values["site"]) == values["site"]
    assert evaluate(adapter.head.graph, adapter, "head", values["head"]) == values["head"]


def op_row(op: OpSpec) -> list[str]:
    reads = "" if str(op.arity) == "1" else f" {op.arity}"
    parameters = [
        f"`{spec.role}` [{', '.join(map(str, spec.shape))}]{' (optional)' * spec.optional}" for spec in op.parameters
    ]
    attributes = [f"`{name}`" for name in op.attributes]
    formula = re.sub(r" \([^()]* \d{4}, §[^()]*\)$", "", op.summary)  # without the source
    return [f"`{op.name}`{reads}", ", ".join([*parameters, *attributes]), formula]


def test_the_op_table_is_that_of_the_code() -> None:
    assert rows("<!-- op table -->", "<!-- end of the op table -->") == [op_row(op) for op in OPS.values()]


def keys(start: str, end: str) -> set[str]:
    """The keys that begin the items of the list between two texts."""
    found = re.findall(r"^- `(\w+)`", DOCUMENT.split(start, 1)[1].split(end, 1)[0], re.MULTILINE)
    assert found
    return set(found)


def test_the_rules_of_tasks_are_about_keys_of_the_schema() -> None:
    assert keys("### Tasks", "Each type") <= set(
        json.loads(schema_text("adapter-graph"))["$defs"]["task"]["properties"]
    )


def test_the_rules_of_the_manifest_are_about_keys_of_its_schema() -> None:
    assert keys("## 9. Bundle", "**Rules**") <= set(json.loads(schema_text("bundle-manifest"))["properties"])


def test_the_errors_are_those_of_the_package() -> None:
    named = {row[1].strip("`") for row in rows("## 7. Errors", "## 8. Worked example")}
    assert {"FileError", "FormatError", "VersionError", "HashError", "TensorError", "GraphError"} < named
    assert all(issubclass(getattr(errors, name), errors.InputError) for name in named)


def test_the_versions_are_those_of_the_code() -> None:
    assert ADAPTER_VERSION == MANIFEST_VERSION == "1.0.0"
    assert f"`{ADAPTER_VERSION}` of both" in DOCUMENT
    assert f'`"{ADAPTER_VERSION}"`' in DOCUMENT
