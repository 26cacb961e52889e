"""The inference form: nothing that training alone needs, and nothing constant left to compute at run time.

A graph is taken there in steps; each changes the graph, and the parameters with it so that the value stays the same:

- a `phm_linear` becomes a dense `linear` with the parameter `<node output>.weight`;
- `identity`, `dropout` and `drop_path` go;
- a factor (`scale`, `learned_scale`, `scale_features`, `keep_first_half`, `keep_second_half`) goes into the parameters
  of the linear or norm before it, or into the rows of the linear behind it.

Parameters that something else uses stay as they are, and so does the factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapter_export.dtypes import Weights
from adapter_export.errors import GraphError
from adapter_export.graph.bind import BORROWED_BIAS, BORROWED_WEIGHT
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.rewire import bypass, exchange, producer, readers, unused, users

Wide = dict[str, npt.NDArray[np.float64]]

_TRANSPARENT = frozenset({"identity", "dropout", "drop_path"})
_SCALARS = frozenset({"scale", "learned_scale"})
_VECTORS = frozenset({"scale_features", "keep_first_half", "keep_second_half"})

_PER_FEATURE = frozenset({"linear", "layer_norm", "rms_norm", "scale_features"})
"""Ops whose result is linear in all their parameters together, feature by feature."""

_AS_A_WHOLE = _PER_FEATURE | {"learned_scale"}
"""Ops whose result is linear in all their parameters together. Not `mix`, whose weights mean what they say."""


@dataclass(frozen=True)
class _Step:
    """One change: the graph behind it, and what becomes of the parameters."""

    graph: AdapterGraph
    fold: Callable[[Wide], None]


def inference_form(graph: AdapterGraph) -> AdapterGraph:
    """The graph without what training alone needs and without factors that `fold_weights` puts into the weights."""
    while (step := _next_step(graph)) is not None:
        graph = step.graph
    return graph


def fold_weights(graph: AdapterGraph, parameters: Mapping[str, np.ndarray]) -> Weights:
    """The parameters with which `inference_form(graph)` computes what `graph` computes with the given ones.

    Products are taken in float64 and rounded once.

    Raises:
        GraphError: a factor takes a parameter out of the range of float32.
    """
    folded = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    while (step := _next_step(graph)) is not None:
        step.fold(folded)
        graph = step.graph
    return {name: _float32(name, folded[name]) for name in graph.parameters}


def _float32(name: str, value: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        narrow = value.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise GraphError(
            f"the factors behind parameter `{name}` take it out of the range of float32",
            found=f"{np.abs(value).max():.3g}",
            expected=f"at most {np.finfo(np.float32).max:.3g}",
            fix="train with a smaller `scale`",
        )
    return narrow


def _next_step(graph: AdapterGraph) -> _Step | None:
    return next(_steps(graph), None)


def _steps(graph: AdapterGraph) -> Iterator[_Step]:
    for node in graph.nodes:
        if node.op == "phm_linear":
            yield _made_dense(graph, node)
        elif node.op in _TRANSPARENT:
            yield _Step(bypass(graph, node), lambda _: None)
        elif node.op in _SCALARS | _VECTORS:
            yield from _absorbed(graph, node)


def _made_dense(graph: AdapterGraph, node: Node) -> _Step:
    rule, left, right = (node.parameters[role] for role in ("rule", "left", "right"))
    weight = unused(f"{node.output}.weight", graph.parameters)
    dims = graph.dimensions(node)
    dense = Node("linear", node.inputs, node.output, {"weight": weight, "bias": node.parameters["bias"]})
    shared = [weight] if {rule, left, right} <= set(graph.shared) else []
    changed = exchange(graph, node, dense, {weight: (dims["in"], dims["out"])}, shared)

    def fold(folded: Wide) -> None:
        products = folded[left] @ folded[right]
        blocks = np.einsum("iac,ipq->apcq", folded[rule], products)
        folded[weight] = blocks.reshape(blocks.shape[0] * blocks.shape[1], -1)

    return _Step(changed, fold)


def _absorbed(graph: AdapterGraph, node: Node) -> Iterator[_Step]:
    """Into what is before the factor if that can take it, else into what is behind it."""
    before = producer(graph, node.inputs[0])
    takes = _AS_A_WHOLE if node.op in _SCALARS else _PER_FEATURE
    if before is not None and before.op in takes and readers(graph, before.output) == 1:
        names = tuple(before.parameters.values())
        if _may_change(graph, node, names):
            yield _Step(bypass(graph, node), lambda folded: _multiply(folded, node, names))
    behind = next((other for other in graph.nodes if other.op == "linear" and node.output in other.inputs), None)
    if behind is not None and readers(graph, node.output) == 1:
        weight = behind.parameters["weight"]
        if _may_change(graph, node, (weight,)):
            yield _Step(bypass(graph, node), lambda folded: _multiply_rows(folded, node, weight))


def _may_change(graph: AdapterGraph, factor: Node, names: tuple[str, ...]) -> bool:
    """Nothing else uses them, they are not the base's, and no factor of one place changes what all places share."""
    fixed = {BORROWED_WEIGHT, BORROWED_BIAS}
    if not set(factor.parameters.values()) <= set(graph.shared):
        fixed |= set(graph.shared)
    return all(users(graph, name) == 1 and name not in fixed for name in names)


def _multiply(folded: Wide, node: Node, names: tuple[str, ...]) -> None:
    for name in names:
        folded[name] = folded[name] * _factor(folded, node, folded[name].shape[-1])


def _multiply_rows(folded: Wide, node: Node, weight: str) -> None:
    rows = folded[weight].shape[0]
    folded[weight] = folded[weight] * np.broadcast_to(_factor(folded, node, rows), rows)[:, None]


def _factor(folded: Wide, node: Node, width: int) -> npt.NDArray[np.float64]:
    """What the node multiplies the features by: [1] or [width]."""
    if node.op == "scale":
        return np.array([node.attributes["factor"]])
    if node.op in {"keep_first_half", "keep_second_half"}:
        first = np.arange(width) < width // 2
        return np.where(first == (node.op == "keep_first_half"), 1.0, 0.0)
    return folded[node.parameters["weight"]]
