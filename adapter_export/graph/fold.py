"""Fold constant factors into the weights before them, so that nothing constant is left to compute at run time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from adapter_export.dtypes import Weights
from adapter_export.errors import GraphError
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.rewire import bypass, producer

_TRANSPARENT = frozenset({"identity", "dropout"})


def inference_form(graph: AdapterGraph) -> AdapterGraph:
    """The graph without what training alone needs and without factors that `fold_weights` puts into the weights."""
    while (node := _next_to_remove(graph)) is not None:
        graph = bypass(graph, node)
    return graph


def fold_weights(graph: AdapterGraph, parameters: Mapping[str, np.ndarray]) -> Weights:
    """The parameters with which `inference_form(graph)` computes what `graph` computes with the given ones.

    The product is taken in float64 and rounded once.

    Raises:
        GraphError: a factor takes a parameter out of the range of float32.
    """
    folded = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    while (node := _next_to_remove(graph)) is not None:
        source = producer(graph, node.inputs[0])
        if node.op == "scale" and source is not None:
            for name in source.parameters.values():
                folded[name] = folded[name] * node.attributes["factor"]
        graph = bypass(graph, node)
    return {name: _float32(name, value) for name, value in folded.items()}


def _float32(name: str, value: np.ndarray) -> npt.NDArray[np.float32]:
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


def _next_to_remove(graph: AdapterGraph) -> Node | None:
    return next((node for node in graph.nodes if node.op in _TRANSPARENT or _folds(graph, node)), None)


def _folds(graph: AdapterGraph, node: Node) -> bool:
    """Whether it is a factor on a linear that nobody else reads and that shares no parameter."""
    if node.op != "scale":
        return False
    source = producer(graph, node.inputs[0])
    if source is None or source.op != "linear":
        return False
    names = [name for other in graph.nodes for name in other.parameters.values()]
    readers = sum(other.inputs.count(source.output) for other in graph.nodes) + (graph.result == source.output)
    return readers == 1 and all(names.count(name) == 1 for name in source.parameters.values())
