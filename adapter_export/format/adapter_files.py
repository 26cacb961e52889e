"""Adapters on disk: a folder with `adapter_graph.json` and `weights.safetensors`. Specified in `docs/format.md`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapter_export.dtypes import Weights
from adapter_export.errors import FileError, FormatError, HashError, within
from adapter_export.format.canonical import canonical_json, parse_json
from adapter_export.format.files import new_folder, read_bytes
from adapter_export.format.records import version_checked
from adapter_export.format.schema import validate
from adapter_export.format.tensors import parse_tensors, tensor_bytes
from adapter_export.graph.adapter import Adapter, Head, Placement
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.ops import Dim
from adapter_export.graph.tasks import DEFAULT_TASK

# Adapter graphs as JSON.


def graph_to_json(graph: AdapterGraph) -> dict[str, Any]:
    """The graph as a JSON object; what is empty or has its default is left out."""
    place = {"replaces": graph.replaces} if graph.replaces != "h" else {}
    shared = {"shared": list(graph.shared)} if graph.shared else {}
    return {
        "inputs": list(graph.inputs),
        "parameters": {name: list(shape) for name, shape in graph.parameters.items()},
        "nodes": [_node_to_json(node) for node in graph.nodes],
        "result": graph.result,
        **place,
        **shared,
    }


def graph_from_json(document: Mapping[str, Any]) -> AdapterGraph:
    """The graph of a JSON object that conforms to the schema.

    Raises:
        GraphError: it is not well formed.
    """
    return AdapterGraph(
        inputs=tuple(document["inputs"]),
        parameters={name: tuple(map(_dim, shape)) for name, shape in document["parameters"].items()},
        nodes=tuple(map(_node_from_json, document["nodes"])),
        result=document["result"],
        replaces=document.get("replaces", "h"),
        shared=tuple(document.get("shared", ())),
    )


def _node_to_json(node: Node) -> dict[str, Any]:
    optional = {"parameters": dict(node.parameters), "attributes": dict(node.attributes)}
    return {
        "op": node.op,
        "inputs": list(node.inputs),
        "output": node.output,
        **{key: value for key, value in optional.items() if value},
    }


def _node_from_json(document: Mapping[str, Any]) -> Node:
    return Node(
        op=document["op"],
        inputs=tuple(document["inputs"]),
        output=document["output"],
        parameters=dict(document.get("parameters", {})),
        attributes={name: float(value) for name, value in document.get("attributes", {}).items()},
    )


def _dim(value: Any) -> Dim:
    """JSON has one kind of number: `64.0` is the width 64."""
    return value if isinstance(value, str) else int(value)


ADAPTER_VERSION = "1.0.0"
"""The version of the adapter format that is written, and the newest that is read."""

GRAPH_FILE = "adapter_graph.json"
WEIGHTS_FILE = "weights.safetensors"

_SCHEMA = "adapter-graph"
_NO_CHECKSUM = "0" * 64


def write_adapter(adapter: Adapter, folder: Path, *, force: bool = False) -> None:
    """Write an adapter; the same adapter always gives the same bytes.

    Args:
        adapter: the adapter.
        folder: where its two files shall be.
        force: replace what is there.

    Raises:
        FormatError: it holds what the format cannot say, such as a site name with a space.
        OutputExistsError: `folder` exists and `force` is not given.
        WriteError: the operating system refused; `folder` is as it was before.
    """
    weights = tensor_bytes(adapter.weights)
    document = _to_json(adapter, hashlib.sha256(weights).hexdigest())
    where = f"adapter `{adapter.name}`"
    validate(parse_json(canonical_json(document), where), _SCHEMA, where)
    with new_folder(folder, force=force) as temporary:
        (temporary / GRAPH_FILE).write_bytes(_with_checksum(document))
        (temporary / WEIGHTS_FILE).write_bytes(weights)


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter, and believe nothing before it is checked.

    Raises:
        FileError: the folder or one of its files is missing or cannot be read.
        FormatError: a file breaks the format; `VersionError`, `HashError` and `TensorError` are kinds of it.
        GraphError: a graph is not well formed.
        AdapterError: graphs, sites and head do not fit together.
    """
    if not folder.is_dir():
        raise FileError(
            "is not an adapter folder", where=folder, expected=f"a folder with `{GRAPH_FILE}` and `{WEIGHTS_FILE}`"
        )
    path = folder / GRAPH_FILE
    data = _read_file(path)
    document: Any = parse_json(data, path)
    with version_checked(document, ADAPTER_VERSION, path):
        validate(document, _SCHEMA, path)
        parts = _parts(document, path)
    _check_checksum(data, document, path)
    weights = _read_weights(folder / WEIGHTS_FILE, document["weights"]["sha256"])
    with within(folder):
        return Adapter(**parts, weights=weights)


def _to_json(adapter: Adapter, sha256: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "version": ADAPTER_VERSION,
        "checksum": _NO_CHECKSUM,
        "name": adapter.name,
        "kind": adapter.kind,
        "base": {"fingerprint": adapter.base},
        "graphs": {name: graph_to_json(graph) for name, graph in adapter.graphs.items()},
        "sites": [
            {"site": site, "graph": placement.graph, "widths": dict(placement.widths)}
            for site, placement in adapter.placements.items()
        ],
        "training": dict(adapter.training),
        "weights": {"file": WEIGHTS_FILE, "sha256": sha256},
    }
    if adapter.head is not None:
        document["head"] = _head_to_json(adapter.head)
    return document


def _head_to_json(head: Head) -> dict[str, Any]:
    """The head; the task that files without one mean is left out, and so are labels where there are none."""
    return {
        "graph": graph_to_json(head.graph),
        "widths": dict(head.widths),
        **({} if head.task == DEFAULT_TASK else {"task": head.task}),
        **({"labels": list(head.labels)} if head.labels else {}),
    }


def _parts(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What `Adapter` takes, but the weights."""
    return {
        "name": document["name"],
        "kind": document["kind"],
        "base": document["base"]["fingerprint"],
        "graphs": _graphs(document["graphs"], path),
        "placements": _placements(document["sites"], path),
        "head": _head(document["head"], path) if "head" in document else None,
        "training": document.get("training", {}),
    }


def _graphs(document: Mapping[str, Any], path: Path) -> dict[str, AdapterGraph]:
    graphs = {}
    for name, graph in document.items():
        with within(f"{path}, graph `{name}`"):
            graphs[name] = graph_from_json(graph)
    return graphs


def _placements(sites: list[dict[str, Any]], path: Path) -> dict[str, Placement]:
    placements: dict[str, Placement] = {}
    for index, record in enumerate(sites):
        if record["site"] in placements:
            raise FormatError(
                "a site occurs twice",
                where=f"{path}, `$.sites[{index}]`",
                found=f"`{record['site']}`",
                fix="give each site one graph",
            )
        placements[record["site"]] = Placement(record["graph"], _widths(record["widths"]))
    return placements


def _head(document: Mapping[str, Any], path: Path) -> Head:
    with within(f"{path}, the head's graph"):
        graph = graph_from_json(document["graph"])
    labels = tuple(document.get("labels", ()))
    return Head(graph, _widths(document["widths"]), labels, document.get("task", DEFAULT_TASK))


def _widths(document: Mapping[str, Any]) -> dict[str, int]:
    return {symbol: int(width) for symbol, width in document.items()}


def _read_file(path: Path) -> bytes:
    if not path.exists():
        raise FileError(
            "is missing in an adapter folder",
            where=path,
            expected=f"`{GRAPH_FILE}` and `{WEIGHTS_FILE}` side by side",
            fix="copy both files of the adapter",
        )
    return read_bytes(path)


def _read_weights(path: Path, expected: str) -> Weights:
    """Read the bytes once, so that those that are used are those whose hash was checked."""
    data = _read_file(path)
    tensors = parse_tensors(data, path)
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise HashError(path, found=found, expected=expected)
    return tensors


def _with_checksum(document: dict[str, Any]) -> bytes:
    """Canonical JSON whose `checksum` is the sha256 of the same bytes with zeros for the checksum's digits."""
    found = hashlib.sha256(canonical_json({**document, "checksum": _NO_CHECKSUM})).hexdigest()
    return canonical_json({**document, "checksum": found})


def _check_checksum(data: bytes, document: Mapping[str, Any], path: Path) -> None:
    """A flipped bit in a factor or a label would be a wrong answer that nothing else notices."""
    expected = document.get("checksum")
    if expected is None:
        return
    found = hashlib.sha256(data.replace(expected.encode(), _NO_CHECKSUM.encode())).hexdigest()
    if found != expected:
        fix = "take the file from its source again; if you changed it on purpose, delete its key `checksum`"
        raise HashError(path, found=found, expected=expected, fix=fix)
