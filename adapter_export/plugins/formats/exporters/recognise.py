"""Comparison of graphs up to the names of values, to recognize formulas of other libraries."""

from __future__ import annotations

from collections.abc import Mapping

from adapter_export.graph.graph import AdapterGraph, Node, bypass
from adapter_export.graph.ops import ACTIVATIONS, OPS

_COMMUTATIVE = "add"


def parameters_alike(
    graph: AdapterGraph, wanted: AdapterGraph, same_inputs: Mapping[str, str] | None = None
) -> dict[str, str] | None:
    """Return the parameter of `graph` for each parameter of `wanted`; `None` if the functions differ.

    Training-only ops, such as dropout, are ignored. `same_inputs` maps inputs of `graph` to those of `wanted` with the
    same value. Shapes are not compared.
    """
    actual, wanted = at_inference(graph), at_inference(wanted)
    if len(actual.nodes) != len(wanted.nodes) or actual.replaces != wanted.replaces:
        return None
    values = {name: (same_inputs or {}).get(name, name) for name in actual.inputs}
    parameters: dict[str, str] = {}
    for node, other in zip(actual.nodes, wanted.nodes, strict=True):
        if not _same_node(node, other, values):
            return None
        values[node.output] = other.output
        for role, name in other.parameters.items():
            if parameters.setdefault(name, node.parameters[role]) != node.parameters[role]:
                return None
    same_shared = {parameters[name] for name in wanted.shared} == set(actual.shared)
    different = len(set(parameters.values())) == len(parameters)
    return parameters if values[actual.result] == wanted.result and same_shared and different else None


def _same_node(node: Node, other: Node, values: Mapping[str, str]) -> bool:
    read = tuple(values[name] for name in node.inputs)
    same = read == other.inputs or (node.op == _COMMUTATIVE and sorted(read) == sorted(other.inputs))
    same_facts = node.parameters.keys() == other.parameters.keys() and dict(node.attributes) == dict(other.attributes)
    return node.op == other.op and same and same_facts


def at_inference(graph: AdapterGraph) -> AdapterGraph:
    """Return the graph without training-only ops and factors of 1."""
    while (node := next((node for node in graph.nodes if _does_nothing(node)), None)) is not None:
        graph = bypass(graph, node)
    return graph


def _does_nothing(node: Node) -> bool:
    return OPS[node.op].training_only or (node.op == "scale" and node.attributes["factor"] == 1)


def factor_of(graph: AdapterGraph) -> float:
    """Return the constant factor of a graph with one `scale`; 1 without it."""
    return next((node.attributes["factor"] for node in graph.nodes if node.op == "scale"), 1.0)


def dropout_of(graph: AdapterGraph) -> float:
    """Return the dropout rate of a graph; 0 without dropout."""
    return next((node.attributes["rate"] for node in graph.nodes if node.op == "dropout"), 0.0)


def transformers_activation(graph: AdapterGraph) -> str:
    """Return the name in transformers of the first activation of a graph; `linear` without any.

    The graph must have passed `check_activation`.
    """
    return OPS[next((node.op for node in graph.nodes if node.op in ACTIVATIONS), "identity")].transformers


def ops_of(graph: AdapterGraph) -> str:
    """List the ops of a graph, for messages."""
    return ", ".join(node.op for node in at_inference(graph).nodes)
