"""Small surgery on graphs: who defines and who reads what, and taking a node out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.ops import Shape


def producer(graph: AdapterGraph, value: str) -> Node | None:
    """The node that defines a value; none for what the graph reads from outside."""
    return next((node for node in graph.nodes if node.output == value), None)


def readers(graph: AdapterGraph, value: str) -> int:
    """How often a value is read, the result counted as one reading."""
    return sum(node.inputs.count(value) for node in graph.nodes) + (graph.result == value)


def users(graph: AdapterGraph, parameter: str) -> int:
    """How often nodes use a parameter."""
    return sum(list(node.parameters.values()).count(parameter) for node in graph.nodes)


def unused(name: str, taken: Collection[str]) -> str:
    """The name, with underscores behind it that make it new."""
    while name in taken:
        name += "_"
    return name


def bypass(graph: AdapterGraph, node: Node) -> AdapterGraph:
    """The graph without a node, whose readers read its first input instead, and without what only that node used."""
    source = node.inputs[0]
    rest = tuple(
        replace(other, inputs=tuple(source if name == node.output else name for name in other.inputs))
        for other in graph.nodes
        if other is not node
    )
    result = source if graph.result == node.output else graph.result
    return _with_nodes(graph, rest, graph.parameters, result, graph.shared)


def exchange(
    graph: AdapterGraph, old: Node, new: Node, added: Mapping[str, Shape], shared: Sequence[str]
) -> AdapterGraph:
    """The graph with another node for the same value and the parameters of that, without what only the old one used.

    Args:
        graph: the graph.
        old: the node to take out.
        new: the node to put in its place, with the same output.
        added: the shapes of new parameters.
        shared: those of them that all places share.
    """
    nodes = tuple(new if node is old else node for node in graph.nodes)
    shapes = {**graph.parameters, **added}
    in_order_of_use = {name: shapes[name] for node in nodes for name in node.parameters.values()}
    return _with_nodes(graph, nodes, in_order_of_use, graph.result, (*graph.shared, *shared))


def _with_nodes(
    graph: AdapterGraph,
    nodes: tuple[Node, ...],
    parameters: Mapping[str, Shape],
    result: str,
    shared: tuple[str, ...],
) -> AdapterGraph:
    """With those of the parameters that the nodes use."""
    used = {name for node in nodes for name in node.parameters.values()}
    return replace(
        graph,
        nodes=nodes,
        parameters={name: shape for name, shape in parameters.items() if name in used},
        result=result,
        shared=tuple(name for name in shared if name in used),
    )
