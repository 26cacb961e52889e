"""Adapter graphs as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.ops import Dim


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
