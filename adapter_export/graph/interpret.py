"""One walk over a graph, for every lowering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from adapter_export.graph.graph import AdapterGraph

Value = TypeVar("Value")
Lowering = Callable[[tuple[Value, ...], Mapping[str, Value], Mapping[str, float]], Value]
"""What one op is in one backend: from values read, parameters by role and attributes to the value defined."""


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
    """
    values = {name: inputs[name] for name in graph.inputs}
    for node in graph.nodes:
        read = tuple(values[name] for name in node.inputs)
        owned = {role: parameters[name] for role, name in node.parameters.items()}
        values[node.output] = lowerings[node.op](read, owned, node.attributes)
    return values
