"""Initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from adapter_export.dtypes import Array, Weights
from adapter_export.errors import UsageError
from adapter_export.graph.graph import AdapterGraph, Node, producer
from adapter_export.graph.ops import OPS, First

SMALL_STD = 0.01
HEAD_STD = 0.02
SHARED_RULE_STD, OWN_RULE_STD = 1e-4, 1e-2
"""Standard deviations; the functions that draw with them name their sources."""

Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
"""Draws a weight [in, out], or the tensor in its name."""


def small_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """N(0, 0.01²), values beyond two standard deviations are redrawn (Houlsby et al. 2019, §3.1)."""
    drawn = rng.standard_normal(shape)
    while (beyond := np.abs(drawn) > 2).any():
        drawn[beyond] = rng.standard_normal(np.count_nonzero(beyond))
    return SMALL_STD * drawn


def kaiming(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Uniform within ±√(6/((1 + a²)·in)) with a = √5, that is ±1/√in (He et al. 2015, §2.2; torch's `Linear`)."""
    bound = 1 / math.sqrt(shape[0])
    return rng.uniform(-bound, bound, shape)


def zero(_: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Fill with 0."""
    return np.zeros(shape)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """N(0, 0.02²) (Devlin et al. 2019, the reference implementation of BERT)."""
    return HEAD_STD * rng.standard_normal(shape)


def glorot(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Factors [n, rows, columns], each slice N(0, 2/(rows + columns)) (Glorot & Bengio 2010, §4.2.1)."""
    return math.sqrt(2 / (shape[-2] + shape[-1])) * rng.standard_normal(shape)


def rule(std: float) -> Draw:
    """N(0, std²) for the rule [n, n, n] of Kronecker products (adapters 1.3)."""
    return lambda rng, shape: std * rng.standard_normal(shape)


@dataclass(frozen=True)
class Scheme:
    """Draws for an adapter's projections.

    `closing` are those whose output goes into the result through nothing but sums, factors and norms, `inner` the
    others, and `gate` those that open a gate, which starts half open (AdapterHub's `houlsby` leaves them to torch).
    """

    inner: Draw
    closing: Draw
    gate: Draw = normal


SCHEMES: Mapping[str, Scheme] = {
    "small_normal": Scheme(small_normal, small_normal, kaiming),
    "normal": Scheme(normal, normal),
    "zero_up": Scheme(small_normal, zero),
    "kaiming_zero_up": Scheme(kaiming, zero),
}
"""`small_normal` starts near the identity (Houlsby et al. 2019, §2), `normal` is AdapterHub's `bert`; the other two
start at the identity exactly where a graph is `h` plus something: only the closing projection learns in the first step
(He et al. 2022, AdapterHub's `mam_adapter`; LoRA does the same)."""

_HEAD_SCHEME = Scheme(normal, normal)


def initialise(graph: AdapterGraph, widths: Mapping[str, int], scheme: str, rng: np.random.Generator) -> Weights:
    """Draw the parameters of a graph: projections by the scheme, norms and learned factors 1, biases 0, mixes equal.

    The projections of a head are drawn from N(0, 0.02²) in all schemes; the factors of Kronecker products by Glorot &
    Bengio, or zero if the scheme makes the projection zero. Raises `UsageError` for an unknown scheme.
    """
    if scheme not in SCHEMES:
        raise UsageError("unknown initialisation", found=f"`{scheme}`", expected=", ".join(SCHEMES))
    draws = _draws(graph, _HEAD_SCHEME if graph.reads_head_values() else SCHEMES[scheme])
    shapes = graph.parameter_shapes(widths)
    return {name: draws[name](rng, shape).astype(np.float32) for name, shape in shapes.items()}


def _draws(graph: AdapterGraph, scheme: Scheme) -> dict[str, Draw]:
    """Return the initializer of each parameter; one shared by a closing and an inner projection counts as closing."""
    closing, gates = _closing(graph, graph.result), _gates(graph)
    draws: dict[str, Draw] = {}
    for node in sorted(graph.nodes, key=lambda node: node in closing):
        draw = scheme.closing if node in closing else scheme.gate if node in gates else scheme.inner
        by_first: dict[First, Draw] = {
            "ones": ones,
            "zeros": zero,
            "mean": mean,
            "projection": draw,
            "factor": glorot,
            "last factor": zero if draw is zero else glorot,
        }
        for parameter in OPS[node.op].parameters:
            name = node.parameters.get(parameter.role)
            if name is not None and parameter.first == "rule":
                draws[name] = rule(SHARED_RULE_STD if name in graph.shared else OWN_RULE_STD)
            elif name is not None:
                draws[name] = by_first[parameter.first]
    return draws


def ones(_: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Fill with 1."""
    return np.ones(shape)


def mean(_: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Weights [rows, N] of a mix: the mean."""
    return np.full(shape, 1 / shape[-1])


def _closing(graph: AdapterGraph, value: str) -> list[Node]:
    """Return the projections from which a value comes through nothing but sums, factors and norms."""
    node = producer(graph, value)
    if node is None or OPS[node.op].projects:
        return [] if node is None else [node]
    op = OPS[node.op]
    sources = node.inputs if op.trained_norm else op.scaled_by(node.inputs)  # neither scores nor gates are among them
    return [projection for source in sources for projection in _closing(graph, source)]


def _gates(graph: AdapterGraph) -> list[Node]:
    """Return the linears whose activation opens a gate."""
    sources = []
    for gate in graph.nodes:
        opened = producer(graph, gate.inputs[1]) if gate.op == "gate" else None
        source = None if opened is None else producer(graph, opened.inputs[0])
        if source is not None and source.op == "linear":
            sources.append(source)
    return sources
