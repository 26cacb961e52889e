"""The vocabulary: every op that an adapter graph may use, given once.

What an op computes is defined by the NumPy lowering (`adapter_export.reference`); here stand the facts that need no
arithmetic: how many values it reads, which parameters and attributes it has, which shape it returns, what it costs.

Shapes are tuples of dimensions; a dimension is a number or a symbol such as `d` (the site's width) or `b` (the
bottleneck). Ops work on the last axis and leave the axes before it alone, unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from adapter_export.errors import GraphError

Dim = int | str
Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class ParameterSpec:
    """A tensor that an op owns.

    Attributes:
        role: what it is to the op: `weight`, `bias`.
        shape: its dimensions in the op's own terms; `in` is the last axis of the first value that the op reads.
        optional: whether a node may leave it out.
    """

    role: str
    shape: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`, without `high` where the interval is half open. NaN is in none."""

    low: float
    high: float
    half_open: bool = False

    def __contains__(self, number: float) -> bool:
        return self.low <= number < self.high or (number == self.high and not self.half_open)

    def __str__(self) -> str:
        return f"{self.low:g} to {'below ' if self.half_open else ''}{self.high:g}"


_FLOAT32_RANGE = Interval(-3.4e38, 3.4e38)

ShapeRule = Callable[[tuple[Shape, ...], Mapping[str, Dim]], Shape]
CostRule = Callable[[Mapping[str, int]], int]


def _same(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    return inputs[0]


def _all_equal(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    if len(set(inputs)) != 1:
        raise GraphError(
            "values of different shapes meet", found=" and ".join(map(str, inputs)), expected="equal shapes"
        )
    return inputs[0]


def _linear(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    return (*inputs[0][:-1], dims["out"])


def _base_norm(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    if inputs[0] != ("batch", "tokens", "d"):
        raise GraphError("the base's norm is of width `d`", found=inputs[0], expected="[batch, tokens, d]")
    return inputs[0]


def _without_tokens(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    batch, _tokens, width = _three_axes(inputs[0])
    return (batch, width)


def _masked_mean(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    if inputs[1] != _three_axes(inputs[0])[:2]:
        raise GraphError("the mask does not cover the tokens", found=inputs[1], expected=inputs[0][:2])
    return _without_tokens(inputs, dims)


def _three_axes(shape: Shape) -> tuple[Dim, Dim, Dim]:
    if len(shape) != 3:
        raise GraphError("pooling reads one value per token", found=shape, expected="[batch, tokens, width]")
    return shape[0], shape[1], shape[2]


def _free(_: Mapping[str, int]) -> int:
    return 0


@dataclass(frozen=True)
class OpSpec:
    """One op.

    Attributes:
        name: its name in files.
        summary: its formula.
        arity: how many values it reads.
        parameters: the tensors it owns.
        attributes: the numbers that a node must state, and where each must lie.
        shape: shape rule, from the shapes read and the bound dimensions to the shape returned.
        multiply_accumulates: cost rule, multiply-accumulates of matrix products per token (or per row after pooling).
    """

    name: str
    summary: str
    arity: int = 1
    parameters: tuple[ParameterSpec, ...] = ()
    attributes: Mapping[str, Interval] = field(default_factory=dict)
    shape: ShapeRule = _same
    multiply_accumulates: CostRule = _free


_ROWS = (
    OpSpec(
        "linear",
        "x @ W + b, W [in, out], b [out]",
        parameters=(ParameterSpec("weight", ("in", "out")), ParameterSpec("bias", ("out",), optional=True)),
        shape=_linear,
        multiply_accumulates=lambda dims: dims["in"] * dims["out"],
    ),
    OpSpec("relu", "max(x, 0)"),
    OpSpec("gelu", "x·Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016, §2)"),
    OpSpec("gelu_tanh", "x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))) (Hendrycks & Gimpel 2016, §2)"),
    OpSpec("quick_gelu", "x·σ(1.702·x) (Hendrycks & Gimpel 2016, §2)"),
    OpSpec("silu", "x·σ(x) (Elfwing et al. 2017, §2)"),
    OpSpec("tanh", "tanh(x)"),
    OpSpec("sigmoid", "σ(x) = 1/(1 + exp(−x))"),
    OpSpec("leaky_relu", "x where x ≥ 0, slope·x elsewhere", attributes={"slope": _FLOAT32_RANGE}),
    OpSpec("identity", "x"),
    OpSpec("scale", "factor·x", attributes={"factor": _FLOAT32_RANGE}),
    OpSpec(
        "dropout",
        "x; in training each element is 0 with probability rate, else x/(1 − rate)",
        attributes={"rate": Interval(0, 1, half_open=True)},
    ),
    OpSpec("add", "x + y", arity=2, shape=_all_equal),
    OpSpec("multiply", "x·y", arity=2, shape=_all_equal),
    OpSpec(
        "layer_norm",
        "(x − mean)/√(var + epsilon)·w + b over the last axis (Ba et al. 2016, §3)",
        parameters=(ParameterSpec("weight", ("in",)), ParameterSpec("bias", ("in",), optional=True)),
        attributes={"epsilon": Interval(1e-12, 1)},
    ),
    OpSpec(
        "rms_norm",
        "x/√(mean(x²) + epsilon)·w over the last axis (Zhang & Sennrich 2019, §3)",
        parameters=(ParameterSpec("weight", ("in",)),),
        attributes={"epsilon": Interval(1e-12, 1)},
    ),
    OpSpec("base_norm", "the norm that the base itself applies to x + h here, with its weights", shape=_base_norm),
    OpSpec("first_token", "x[:, 0], from [batch, tokens, width] to [batch, width]", shape=_without_tokens),
    OpSpec(
        "mean_pool",
        "Σₜ mask·x / max(Σₜ mask, 1), from [batch, tokens, width] and [batch, tokens] to [batch, width]",
        arity=2,
        shape=_masked_mean,
    ),
)

OPS: Mapping[str, OpSpec] = {row.name: row for row in _ROWS}

BOUND_OPS = frozenset({"base_norm"})
"""Ops that no lowering has: `adapter_export.graph.bind` replaces them by others, as the base at hand says."""

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "sigmoid", "leaky_relu", "identity")
"""The element-wise ops that may stand between the two projections of a bottleneck."""
