"""Small surgery on graphs: who reads what, and taking a node out."""

from __future__ import annotations

from dataclasses import replace

from adapter_export.graph.graph import AdapterGraph, Node


def producer(graph: AdapterGraph, value: str) -> Node | None:
    """The node that defines a value; none for what the graph reads from outside."""
    return next((node for node in graph.nodes if node.output == value), None)


def bypass(graph: AdapterGraph, node: Node) -> AdapterGraph:
    """The graph without a node of one input, whose readers read that input instead."""
    (source,) = node.inputs
    rest = tuple(
        replace(other, inputs=tuple(source if name == node.output else name for name in other.inputs))
        for other in graph.nodes
        if other is not node
    )
    return replace(graph, nodes=rest, result=source if graph.result == node.output else graph.result)
