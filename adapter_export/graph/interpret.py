"""One walk over a graph, for every lowering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from adapter_export.errors import GraphError
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.ops import BOUND_OPS

Value = TypeVar("Value")
Lowering = Callable[[Node, tuple[Value, ...], Mapping[str, Value]], Value]
"""What one op is in one backend: from the node (its attributes, its output's name), the values that it reads and its
parameters by role to the value that it defines."""


def interpret(
    graph: AdapterGraph,
    lowerings: Mapping[str, Lowering[Value]],
    inputs: Mapping[str, Value],
    parameters: Mapping[str, Value],
) -> dict[str, Value]:
    """Evaluate every node of a graph.

    Args:
        graph: the graph.
        lowerings: one function per op; every op of the graph must be there.
        inputs: the site values that the graph reads.
        parameters: a tensor for each of the graph's parameters.

    Returns:
        Every value of the graph by name, the inputs included; the result is at `graph.result`.

    Raises:
        GraphError: an op of `BOUND_OPS` is not bound.
    """
    values = {name: inputs[name] for name in graph.inputs}
    for node in graph.nodes:
        read = tuple(values[name] for name in node.inputs)
        owned = {role: parameters[name] for role, name in node.parameters.items()}
        values[node.output] = _lowering(lowerings, node)(node, read, owned)
    return values


def _lowering(lowerings: Mapping[str, Lowering[Value]], node: Node) -> Lowering[Value]:
    if node.op in BOUND_OPS:
        raise GraphError(
            "an op is the base's own and has no value without a base",
            where=f"`{node.output}`",
            found=f"`{node.op}`",
            fix="bind it to the base first",
        )
    return lowerings[node.op]
