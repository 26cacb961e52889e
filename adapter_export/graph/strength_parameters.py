"""Parameters that scale what a graph adds, without a change of the graph."""

from __future__ import annotations

from adapter_export.graph.graph import AdapterGraph, Node, producer
from adapter_export.graph.ops import OPS


def strength_parameters(graph: AdapterGraph) -> frozenset[str] | None:
    """Return the parameters p of a site's graph for which `n + s·(p − n)`, n being neutral, gives `v + s·(result − v)`.

    v is the value that the result replaces. Returns `None` if no parameters satisfy this for every s: the residual is
    lost, the sum is normalised, or one update reads another.
    """
    steps = _steps(graph, graph.result)
    if steps is None:
        return None
    chosen = frozenset(name for node in steps for name in node.parameters.values())
    step_ids = {id(node) for node in steps}
    for node in graph.nodes:  # a parameter is used nowhere else, and no update reads another one
        if id(node) not in step_ids and chosen & set(node.parameters.values()):
            return None
    outputs = {node.output for node in steps}
    if any(outputs & _behind(graph, name) for node in steps for name in node.inputs):
        return None
    return chosen


def _steps(graph: AdapterGraph, value: str) -> list[Node] | None:
    """Return the nodes whose parameters scale the path to a value from the replaced one; `None` without any."""
    if value == graph.replaces:
        return []
    node = producer(graph, value)
    if node is None:
        return None
    if node.op == "add":
        for straight_input, added in (node.inputs, node.inputs[::-1]):
            straight, update = _steps(graph, straight_input), _factors(graph, added)
            if straight is not None and update is not None:
                return [*straight, *update]
        return None
    op = OPS[node.op]
    if op.factor and op.parameters and node.inputs == (graph.replaces,):
        return [node]
    return _steps(graph, node.inputs[0]) if op.training_only else None


def _factors(graph: AdapterGraph, value: str) -> list[Node] | None:
    """Return the nodes by whose parameters a value is multiplied by any number; `None` if there are none."""
    node = producer(graph, value)
    if node is None:
        return None
    op = OPS[node.op]
    if op.linear_in_parameters is not None:
        return [node]
    if op.linear_in == "each":
        return next((steps for steps in (_factors(graph, name) for name in node.inputs) if steps), None)
    factors = [_factors(graph, part) for part in op.scaled_by(node.inputs)]
    return None if not factors or None in factors else [node for each in factors if each for node in each]


def _behind(graph: AdapterGraph, value: str) -> set[str]:
    """Return a value and its ancestors."""
    names, waiting = set[str](), [value]
    while waiting:
        name = waiting.pop()
        node = producer(graph, name)
        if name not in names and node is not None:
            waiting.extend(node.inputs)
        names.add(name)
    return names
