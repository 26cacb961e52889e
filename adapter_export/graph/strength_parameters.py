"""The parameters by which what a graph adds can be made stronger or weaker, without another graph."""

from __future__ import annotations

from adapter_export.graph.graph import AdapterGraph, Node, producer

_LINEAR_IN_OWN = frozenset({"linear", "layer_norm", "rms_norm", "scale_features", "learned_scale", "mix"})
"""Ops whose result is multiplied by a number if all their parameters are."""

_LINEAR_IN_FIRST = frozenset(
    {"identity", "dropout", "drop_path", "scale", "keep_first_half", "keep_second_half", "gate"}
)
"""Ops without parameters whose result is multiplied by a number if the first value that they read is."""


def strength_parameters(graph: AdapterGraph) -> frozenset[str] | None:
    """The parameters p of a site's graph for which `n + s·(p − n)`, n being neutral, gives `v + s·(result − v)`.

    v is what the result replaces. None if there are none for which this holds for every s: where the residual is lost,
    the sum is normalised, or one update reads another.
    """
    found = _steps(graph, graph.result)
    if found is None:
        return None
    chosen = frozenset(name for node in found for name in node.parameters.values())
    own = {id(node) for node in found}
    for node in graph.nodes:  # each is in one of these places alone, and none of these reads what another makes
        if id(node) not in own and chosen & set(node.parameters.values()):
            return None
    made = {node.output for node in found}
    if any(made & _behind(graph, name) for node in found for name in node.inputs):
        return None
    return chosen


def _steps(graph: AdapterGraph, value: str) -> list[Node] | None:
    """The nodes whose parameters lead a value from the one that is replaced to itself; none if nothing does."""
    if value == graph.replaces:
        return []
    node = producer(graph, value)
    if node is None:
        return None
    if node.op == "add":
        for kept, added in (node.inputs, node.inputs[::-1]):
            straight, update = _steps(graph, kept), _factors(graph, added)
            if straight is not None and update is not None:
                return [*straight, *update]
        return None
    if node.op in ("scale_features", "learned_scale") and node.inputs == (graph.replaces,):
        return [node]
    return _steps(graph, node.inputs[0]) if node.op in ("identity", "dropout") else None


def _factors(graph: AdapterGraph, value: str) -> list[Node] | None:
    """The nodes by whose parameters a value is multiplied by any number; none if it is not."""
    node = producer(graph, value)
    if node is None:
        return None
    if node.op in _LINEAR_IN_OWN:
        return [node]
    if node.op in _LINEAR_IN_FIRST:
        return _factors(graph, node.inputs[0])
    if node.op == "multiply":
        return _factors(graph, node.inputs[0]) or _factors(graph, node.inputs[1])
    parts = (
        node.inputs if node.op == "add" else node.inputs[len(node.inputs) // 2 :] if node.op == "softmax_mix" else ()
    )
    found = [_factors(graph, part) for part in parts]
    return None if not found or None in found else [one for each in found if each for one in each]


def _behind(graph: AdapterGraph, value: str) -> set[str]:
    """A value and all that it is computed from."""
    found, waiting = set[str](), [value]
    while waiting:
        name = waiting.pop()
        node = producer(graph, name)
        if name not in found and node is not None:
            waiting.extend(node.inputs)
        found.add(name)
    return found
