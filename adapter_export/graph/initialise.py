"""The weights with which training starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from adapter_export.dtypes import Array, Weights
from adapter_export.errors import UsageError
from adapter_export.graph.graph import AdapterGraph

SMALL_STD = 0.01
HEAD_STD = 0.02

Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
"""Draws a weight [in, out]."""


def small_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """N(0, 0.01²), what lies beyond two standard deviations drawn again (Houlsby et al. 2019, §3.1)."""
    drawn = rng.standard_normal(shape)
    while (beyond := np.abs(drawn) > 2).any():
        drawn[beyond] = rng.standard_normal(np.count_nonzero(beyond))
    return SMALL_STD * drawn


def kaiming(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Uniform within ±√(6/((1 + a²)·in)) with a = √5, that is ±1/√in (He et al. 2015, §2.2; torch's `Linear`)."""
    bound = 1 / math.sqrt(shape[0])
    return rng.uniform(-bound, bound, shape)


def zero(_: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """All zeros."""
    return np.zeros(shape)


def head_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """N(0, 0.02²) (Devlin et al. 2019, the reference implementation of BERT)."""
    return HEAD_STD * rng.standard_normal(shape)


@dataclass(frozen=True)
class Scheme:
    """How the weights of an adapter's projections are drawn.

    Attributes:
        inner: of every projection but the closing ones.
        closing: of those whose output goes into the result with nothing but sums, factors and norms on the way.
    """

    inner: Draw
    closing: Draw


SCHEMES: Mapping[str, Scheme] = {
    "small_normal": Scheme(small_normal, small_normal),
    "zero_up": Scheme(small_normal, zero),
    "kaiming_zero_up": Scheme(kaiming, zero),
}
"""`small_normal` starts near the identity (Houlsby et al. 2019, §2); the other two start at it exactly where a graph
is `h` plus something: only the closing projection learns in the first step (He et al. 2022; LoRA does the same)."""

_HEAD_SCHEME = Scheme(head_normal, head_normal)
_CLOSING_PATH = frozenset({"add", "scale", "dropout", "identity", "layer_norm", "rms_norm"})


def initialise(graph: AdapterGraph, widths: Mapping[str, int], scheme: str, rng: np.random.Generator) -> Weights:
    """Draw the parameters of a graph: projections by the scheme, norm weights 1, biases 0.

    The projections of a head are drawn from N(0, 0.02²) whatever the scheme.

    Args:
        graph: a site's graph or a head's.
        widths: a number for each of its symbols.
        scheme: a name in `SCHEMES`.
        rng: the source of randomness.

    Raises:
        UsageError: there is no such scheme.
    """
    if scheme not in SCHEMES:
        raise UsageError("unknown initialisation", found=f"`{scheme}`", expected=", ".join(SCHEMES))
    draws = _draws(graph, _HEAD_SCHEME if graph.reads_head_values() else SCHEMES[scheme])
    shapes = graph.parameter_shapes(widths)
    return {name: draws[name](rng, shape).astype(np.float32) for name, shape in shapes.items()}


def _draws(graph: AdapterGraph, scheme: Scheme) -> dict[str, Draw]:
    """How each parameter is drawn; one that a closing and an inner projection share counts as closing."""
    draws: dict[str, Draw] = {}
    for node in graph.nodes:
        for role, name in node.parameters.items():
            draws[name] = zero
            if role == "weight":
                draws[name] = scheme.inner if node.op == "linear" else _one
    closing = _closing_weights(graph, graph.result)
    return {name: scheme.closing if name in closing else draw for name, draw in draws.items()}


def _one(_: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return np.ones(shape)


def _closing_weights(graph: AdapterGraph, value: str) -> set[str]:
    node = next((node for node in graph.nodes if node.output == value), None)
    if node is None:
        return set()
    if node.op == "linear":
        return {node.parameters["weight"]}
    if node.op not in _CLOSING_PATH:
        return set()
    return {name for source in node.inputs for name in _closing_weights(graph, source)}
