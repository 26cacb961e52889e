"""Every op that an adapter graph may use, with all of its properties: a new op is one row here and three lowerings.

The NumPy lowering (`adapter_export.graph.numpy_lowering`) defines what an op computes. A dimension is a number or a
symbol such as `d` (the site's width) or `b` (the bottleneck). Ops work on the last axis unless they say otherwise.
Folding, neutral parameters, strength, first weights and budgets read these properties instead of tables of op names;
`tests/graph/test_op_properties.py` compares each property with the NumPy lowering.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

from adapter_export.errors import GraphError, UsageError
from adapter_export.interval import Interval

TOKENS = "tokens"
"""Axis of the tokens among the dimensions that an op sums over."""

Read = TypeVar("Read")

Dim = int | str
Shape = tuple[Dim, ...]

ShapeRule = Callable[[tuple[Shape, ...], Mapping[str, Dim]], Shape]
"""Maps the shapes read and the op's own dimensions to the shape returned; raises `GraphError`."""

CostRule = Callable[[Mapping[str, int]], int]
"""Maps the op's own dimensions to multiply-accumulates of matrix products per token, or per row after pooling."""

DegreeRule = Callable[[Sequence[int]], int]
"""Maps the powers of the site values in the values read to their power in the result."""

First = Literal["zeros", "ones", "mean", "projection", "rule", "factor", "last factor"]
"""First numbers of a parameter: 0, 1, 1/values, or drawn as in `adapter_export.graph.initialise`."""

LinearIn = Literal["nothing", "first", "all", "each", "mixed"]
"""The values that scale the result when they are scaled: none, the first, all together, each by itself (products), or
the second half together (the values of a mixture by scores)."""


@dataclass(frozen=True)
class ParameterSpec:
    """A tensor of an op: its role, such as `weight`, its shape in the op's own terms, and its first numbers.

    `in` is the last axis of the first value that the op reads, `values` the number of values that a variadic op mixes.
    """

    role: str
    shape: tuple[Dim, ...]
    optional: bool = False
    first: First = "ones"


@dataclass(frozen=True)
class Arity:
    """The number of values that an op reads: `least` and any multiple of `step` more, which is 0 where it is fixed."""

    least: int = 1
    step: int = 0

    def __contains__(self, count: int) -> bool:
        more = count - self.least
        return more >= 0 and more % self.step == 0 if self.step else more == 0

    def __str__(self) -> str:
        return f"{self.least}, {self.least + self.step}, …" if self.step else str(self.least)


def same_shape(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    """Return the shape of the first input."""
    return inputs[0]


def all_equal(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    """Return the common shape of all inputs."""
    if len(set(inputs)) != 1:
        shapes = " and ".join(map(str, inputs))
        raise GraphError("values of different shapes meet", found=shapes, expected="equal shapes")
    return inputs[0]


def linear(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """Return the shape with `out` as the last axis."""
    return (*inputs[0][:-1], dims["out"])


def one_number(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """Values of one shape, whose last axis becomes 1."""
    return (*all_equal(inputs, dims)[:-1], 1)


def chosen_features(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """Return the shape with one feature for each index."""
    return (*inputs[0][:-1], dims["indices"])


def spread(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """Return the shape of the second input; the first has one feature for each index."""
    expected = (*inputs[1][:-1], dims["indices"])
    if inputs[0] != expected:
        raise GraphError("a value has another shape than its indices", found=inputs[0], expected=expected)
    return inputs[1]


def without_tokens(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    """One value per token becomes one per row."""
    batch, _tokens, width = _three_axes(inputs[0])
    return (batch, width)


def masked(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """One value per token and a mask [batch, tokens] become one value per row."""
    if inputs[1] != _three_axes(inputs[0])[:2]:
        raise GraphError("the mask does not cover the tokens", found=inputs[1], expected=inputs[0][:2])
    return without_tokens(inputs, dims)


def gated(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    """One value per token, and one number per token."""
    batch, tokens, _width = _three_axes(inputs[0])
    if inputs[1] != (batch, tokens, 1):
        raise GraphError("a gate is one number per token", found=inputs[1], expected=(batch, tokens, 1))
    return inputs[0]


def equal_per_token(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """Return the common shape [batch, tokens, width] of all inputs."""
    _three_axes(inputs[0])
    return all_equal(inputs, dims)


def mixed_by_scores(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """N scores with a last axis of 1, then N values of one shape, which is returned."""
    count = len(inputs) // 2
    value = all_equal(inputs[count:], dims)
    wrong = [shape for shape in inputs[:count] if shape != (*value[:-1], 1)]
    if wrong:
        raise GraphError("a score is one number beside each value", found=wrong[0], expected=(*value[:-1], 1))
    return value


def of_base_norm(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    """Return the shape that the base itself normalises there."""
    if inputs[0] != ("batch", "tokens", "d"):
        raise GraphError("the base's norm is of width `d`", found=inputs[0], expected="[batch, tokens, d]")
    return inputs[0]


def _three_axes(shape: Shape) -> tuple[Dim, Dim, Dim]:
    if len(shape) != 3:
        raise GraphError("an op over tokens reads one value per token", found=shape, expected="[batch, tokens, width]")
    return shape[0], shape[1], shape[2]


def largest(powers: Sequence[int]) -> int:
    """Sums and functions that grow no faster than what they read."""
    return max(powers)


def of_first(powers: Sequence[int]) -> int:
    """Functions of the first value that read only the shape of the others."""
    return powers[0]


def bounded(_: Sequence[int]) -> int:
    """Functions with bounded results for all inputs."""
    return 0


def squared(powers: Sequence[int]) -> int:
    """Squares of the value read."""
    return 2 * powers[0]


@dataclass(frozen=True)
class OpSpec:
    """One op.

    A property that a row leaves out is taken to be absent, which may refuse an adapter or leave work to run time, but
    never changes a result. Only `degree` is assumed: the largest power read.

    Attributes:
        name: the op.
        summary: its formula and source, as published in `docs/reference/format.md`.
        arity: the number of values that it reads.
        parameters: its tensors.
        attributes: the numbers that a node must state, with their ranges.
        defaults: the attributes of an activation where none are chosen.
        shape: the shape rule.
        products: the dimensions that are, in numbers, the product of others (1 where there are none).
        multiply_accumulates: the cost rule; element-wise work is not counted.
        sums: dimensions of its consecutive sums; `tokens` is the axis of the tokens.
        degree: the degree rule.
        trained_norm: it brings the features of each token to one scale, and then multiplies them by its parameters.
        linear_in: the values in which it is linear.
        linear_in_parameters: all parameters together scale the result: `feature` by feature, or as a `whole`; `stated`
            is as a whole, but the numbers have a meaning of their own, so nothing is folded into them.
        factor: it multiplies its input by constants: one for the `whole`, or one for each `feature`.
        keeps_zero: 0 for a first value of 0. Implied by `linear_in`.
        zero_by_parameters: 0 if all parameters are 0. Implied by `linear_in_parameters`.
        half_rectified: 0 for all numbers up to 0, so that a unit can stay 0 for every input.
        training_only: at inference the result is the first value.
        random: it draws random numbers in training, so two nodes never compute the same.
        mixes_tokens: the result at a token depends on other tokens of its text.
        three_axes: it tells rows from tokens: where a base flattens both to one axis, it computes something else.
        of_ids: it reads ids [batch, tokens] instead of one-hot vectors [batch, tokens, in].
        bound: no lowering has it: `graph.bind_base_norm` replaces it by the op of the base at hand.
        also_called: the names of the same activation in transformers and AdapterHub, or of the same pooling in
            sentence-transformers.
        transformers: the name of this activation, with its default attributes, that models of transformers and adapters
            of AdapterHub load; empty if they have none. Exports write it.
        pooling: the name of this pooling in options and records.
        pooled: the vector of a text that this pooling gives, for help pages.
    """

    name: str
    summary: str
    arity: Arity = Arity()
    parameters: tuple[ParameterSpec, ...] = ()
    attributes: Mapping[str, Interval] = field(default_factory=dict)
    defaults: Mapping[str, float] = field(default_factory=dict)
    shape: ShapeRule = same_shape
    products: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    multiply_accumulates: CostRule = lambda _: 0
    sums: tuple[str, ...] = ()
    degree: DegreeRule = largest
    trained_norm: bool = False
    linear_in: LinearIn = "nothing"
    linear_in_parameters: Literal["feature", "whole", "stated"] | None = None
    factor: Literal["whole", "feature"] | None = None
    keeps_zero: bool = False
    zero_by_parameters: bool = False
    half_rectified: bool = False
    training_only: bool = False
    random: bool = False
    mixes_tokens: bool = False
    three_axes: bool = False
    of_ids: bool = False
    bound: bool = False
    also_called: tuple[str, ...] = ()
    transformers: str = ""
    pooling: str = ""
    pooled: str = ""

    @property
    def projects(self) -> bool:
        """True if it has a weight matrix that schemes of first weights draw."""
        return any(parameter.first in ("projection", "factor", "last factor") for parameter in self.parameters)

    def scaled_by(self, inputs: Sequence[Read]) -> Sequence[Read]:
        """Return the values read that together scale the result; empty for a product, which has no such set."""
        if self.linear_in == "first":
            return inputs[:1]
        if self.linear_in == "mixed":
            return inputs[len(inputs) // 2 :]
        return inputs if self.linear_in == "all" else ()

    def is_zero(self, zero: Sequence[bool]) -> bool:
        """Return true if the result is 0 for these inputs at 0 and any parameters."""
        if self.linear_in == "each":
            return any(zero)
        scaled = self.scaled_by(zero)
        return (self.keeps_zero and zero[0]) or (len(scaled) > 0 and all(scaled))

    @property
    def is_zero_by_parameters(self) -> bool:
        """True if the result is 0 where all of its parameters are."""
        return self.zero_by_parameters or self.linear_in_parameters is not None


FLOAT32_RANGE = Interval(-3.4e38, 3.4e38)
PROBABILITY = Interval(0, 1, half_open=True)
EPSILON = Interval(1e-12, 1)
TEMPERATURE = Interval(1e-6, 1e6)
_TWO = Arity(2)

_PROJECTIONS = (
    OpSpec(
        "linear",
        "x @ W + b, W [in, out], b [out]",
        parameters=(
            ParameterSpec("weight", ("in", "out"), first="projection"),
            ParameterSpec("bias", ("out",), optional=True, first="zeros"),
        ),
        shape=linear,
        multiply_accumulates=lambda dims: dims["in"] * dims["out"],
        sums=("in",),
        linear_in_parameters="feature",
    ),
    OpSpec(
        "phm_linear",
        "x @ W + b, W = Σᵢ rule[i] ⊗ (left[i] @ right[i]) of shape [n·p, n·q], ⊗ the Kronecker product "
        "(Mahabadi et al. 2021, §3.1)",
        parameters=(
            ParameterSpec("rule", ("n", "n", "n"), first="rule"),
            ParameterSpec("left", ("n", "p", "k"), first="factor"),
            ParameterSpec("right", ("n", "k", "q"), first="last factor"),
            ParameterSpec("bias", ("out",), first="zeros"),
        ),
        shape=linear,
        products={"in": ("n", "p"), "out": ("n", "q")},
        multiply_accumulates=lambda dims: dims["n"] * dims["p"] * dims["n"] * dims["q"],
        sums=("k", "n", "in"),
        zero_by_parameters=True,
    ),
)

INDEX_BASE = 2048
"""Base of the two digits of an index: float16 has every whole number up to it."""

_INDEX = (ParameterSpec("high", ("indices",), first="zeros"), ParameterSpec("low", ("indices",), first="zeros"))

_INDEXED = (
    OpSpec(
        "lookup",
        "W[x], x the ids of rows",
        parameters=(ParameterSpec("weight", ("in", "out"), first="projection"),),
        shape=linear,
        degree=bounded,
        linear_in_parameters="feature",
        of_ids=True,
    ),
    OpSpec(
        "one_hot",
        f"1 where the id x is {INDEX_BASE}·high + low, else 0",
        parameters=_INDEX,
        shape=chosen_features,
        degree=bounded,
        of_ids=True,
    ),
    OpSpec(
        "scatter",
        f"zeros like y, plus x at features {INDEX_BASE}·high + low",
        arity=_TWO,
        parameters=_INDEX,
        shape=spread,
        degree=of_first,
        linear_in="first",
    ),
)

_ELEMENTWISE = (
    OpSpec("relu", "max(x, 0)", keeps_zero=True, half_rectified=True, transformers="relu"),
    OpSpec(
        "gelu",
        "x·Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016, §2)",
        keeps_zero=True,
        also_called=("gelu_python",),
        transformers="gelu",
    ),
    OpSpec(
        "gelu_tanh",
        "x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))) (Hendrycks & Gimpel 2016, §2)",
        keeps_zero=True,
        also_called=("gelu_new", "gelu_accurate", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh"),
        transformers="gelu_new",
    ),
    OpSpec("quick_gelu", "x·σ(1.702·x) (Hendrycks & Gimpel 2016, §2)", keeps_zero=True, transformers="quick_gelu"),
    OpSpec("silu", "x·σ(x) (Elfwing et al. 2017, §2)", keeps_zero=True, also_called=("swish",), transformers="silu"),
    OpSpec("tanh", "tanh(x)", keeps_zero=True, degree=bounded, transformers="tanh"),
    OpSpec("sigmoid", "σ(x) = 1/(1 + exp(−x))", degree=bounded, transformers="sigmoid"),
    OpSpec(
        "leaky_relu",
        "x where x ≥ 0, slope·x elsewhere",
        attributes={"slope": FLOAT32_RANGE},
        defaults={"slope": 0.01},  # torch's own
        keeps_zero=True,
        also_called=("leakyrelu",),
        transformers="leaky_relu",
    ),
    OpSpec(
        "relu6",
        "min(max(x, 0), 6) (Krizhevsky 2010, §3)",
        keeps_zero=True,
        degree=bounded,
        half_rectified=True,
        transformers="relu6",
    ),
    OpSpec(
        "relu_squared",
        "max(x, 0)² (So et al. 2021, §3)",
        keeps_zero=True,
        degree=squared,
        half_rectified=True,
        also_called=("relu2",),
        transformers="relu2",
    ),
    OpSpec(
        "log_relu",
        "log(1 + max(x, 0)) (Formal et al. 2021, §3)",
        keeps_zero=True,
        degree=bounded,
        half_rectified=True,
    ),
    OpSpec("mish", "x·tanh(log(1 + exp(x))) (Misra 2019, §2)", keeps_zero=True, transformers="mish"),
    OpSpec("elu", "x where x > 0, exp(x) − 1 elsewhere (Clevert et al. 2015, §3)", keeps_zero=True),
    OpSpec("identity", "x", linear_in="first", training_only=True, also_called=("linear",), transformers="linear"),
)

_FACTORS = (
    OpSpec("scale", "factor·x", attributes={"factor": FLOAT32_RANGE}, linear_in="first", factor="whole"),
    OpSpec(
        "learned_scale",
        "x·w, w [1]",
        parameters=(ParameterSpec("weight", (1,)),),
        linear_in="first",
        linear_in_parameters="whole",
        factor="whole",
    ),
    OpSpec(
        "scale_features",
        "x·w, w [in]",
        parameters=(ParameterSpec("weight", ("in",)),),
        linear_in="first",
        linear_in_parameters="feature",
        factor="feature",
    ),
    OpSpec("keep_first_half", "x in the first ⌊in/2⌋ features, 0 in the others", linear_in="first", factor="feature"),
    OpSpec("keep_second_half", "0 in the first ⌊in/2⌋ features, x in the others", linear_in="first", factor="feature"),
    OpSpec(
        "gate",
        "x·meanₜ(y), y [batch, tokens, 1] and the mean over all tokens, padding included",
        arity=_TWO,
        shape=gated,
        sums=(TOKENS,),
        degree=sum,
        linear_in="first",
        mixes_tokens=True,
        three_axes=True,
    ),
    OpSpec(
        "dropout",
        "x; in training each element is 0 with probability rate, else x/(1 − rate)",
        attributes={"rate": PROBABILITY},
        linear_in="first",
        training_only=True,
        random=True,
    ),
    OpSpec(
        "drop_path",
        "x; in training each row is 0 with probability rate, else x/(1 − rate) (Huang et al. 2016, §3)",
        attributes={"rate": PROBABILITY},
        linear_in="first",
        training_only=True,
        random=True,
        three_axes=True,
    ),
)

_SUMS = (
    OpSpec("add", "x + y", arity=_TWO, shape=all_equal, linear_in="all"),
    OpSpec("multiply", "x·y", arity=_TWO, shape=all_equal, degree=sum, linear_in="each"),
    OpSpec(
        "dot",
        "Σ x·y over the last axis, which becomes 1",
        arity=_TWO,
        shape=one_number,
        sums=("in",),
        degree=sum,
        linear_in="each",
    ),
    OpSpec(
        "mix",
        "Σᵢ weights[:, i]·vᵢ of the values v read; one row of weights, or at run time one for each row of the batch",
        arity=Arity(1, 1),
        parameters=(ParameterSpec("weights", ("rows", "values"), first="mean"),),
        shape=equal_per_token,
        products={"rows": ()},
        sums=("values",),
        linear_in="all",
        linear_in_parameters="stated",
        three_axes=True,
    ),
    OpSpec(
        "softmax_mix",
        "Σᵢ pᵢ·vᵢ, p = softmax(s/temperature), of as many scores s [batch, tokens, 1] and then values v",
        arity=Arity(2, 2),
        attributes={"temperature": TEMPERATURE},
        shape=mixed_by_scores,
        sums=("values", "values"),
        linear_in="mixed",
    ),
)

_NORMS = (
    OpSpec(
        "layer_norm",
        "(x − mean)/√(var + epsilon)·w + b over the last axis (Ba et al. 2016, §3)",
        parameters=(
            ParameterSpec("weight", ("in",)),
            ParameterSpec("bias", ("in",), optional=True, first="zeros"),
        ),
        attributes={"epsilon": EPSILON},
        sums=("in",),
        degree=bounded,
        trained_norm=True,
        linear_in_parameters="feature",
    ),
    OpSpec(
        "rms_norm",
        "x/√(mean(x²) + epsilon)·w over the last axis (Zhang & Sennrich 2019, §3)",
        parameters=(ParameterSpec("weight", ("in",)),),
        attributes={"epsilon": EPSILON},
        sums=("in",),
        degree=bounded,
        trained_norm=True,
        linear_in_parameters="feature",
        keeps_zero=True,
    ),
    OpSpec(
        "base_norm",
        "the norm that the base itself applies to x + h here, with its weights",
        shape=of_base_norm,
        bound=True,
    ),
    OpSpec(
        "l2_normalise",
        "x/max(‖x‖, 1e-12), ‖x‖ the root of the sum of squares over the last axis",
        sums=("in",),
        degree=bounded,
        keeps_zero=True,
    ),
)

_POOLING = (
    OpSpec(
        "mean_pool",
        "Σₜ mask·x / max(Σₜ mask, 1), from [batch, tokens, width] and [batch, tokens] to [batch, width]",
        arity=_TWO,
        shape=masked,
        sums=(TOKENS,),
        linear_in="first",
        mixes_tokens=True,
        three_axes=True,
        also_called=("mean",),
        pooling="mean",
        pooled="the mean of the tokens",
    ),
    OpSpec(
        "first_token",
        "x[:, 0], from [batch, tokens, width] to [batch, width]",
        shape=without_tokens,
        linear_in="first",
        mixes_tokens=True,
        three_axes=True,
        also_called=("cls",),
        pooling="first",
        pooled="the first token",
    ),
    OpSpec(
        "last_token",
        "x[:, t], t the rightmost token with a mask other than 0; 0 where the mask keeps no token",
        arity=_TWO,
        shape=masked,
        linear_in="first",
        mixes_tokens=True,
        three_axes=True,
        also_called=("lasttoken",),
        pooling="last",
        pooled="the last token",
    ),
    OpSpec(
        "max_pool",
        "maxₜ x[:, t] over the tokens with a mask other than 0, by feature; 0 where the mask keeps no token",
        arity=_TWO,
        shape=masked,
        keeps_zero=True,
        mixes_tokens=True,
        three_axes=True,
        also_called=("max",),
        pooling="max",
        pooled="the maximum of each feature",
    ),
    OpSpec(
        "weighted_mean_pool",
        "Σₜ w·x / max(Σₜ w, 1), wₜ = maskₜ·Σₛ₌₁…ₜ maskₛ, so that the n-th token weighs n (Muennighoff 2022, §3.1)",
        arity=_TWO,
        shape=masked,
        sums=(TOKENS,),
        linear_in="first",
        mixes_tokens=True,
        three_axes=True,
        also_called=("weightedmean",),
        pooling="weighted_mean",
        pooled="the mean weighted by position",
    ),
)

OPS: Mapping[str, OpSpec] = {
    row.name: row for row in (*_PROJECTIONS, *_INDEXED, *_ELEMENTWISE, *_FACTORS, *_SUMS, *_NORMS, *_POOLING)
}

LOWERED = tuple(name for name, row in OPS.items() if not row.bound)
"""Ops that every lowering implements."""

ACTIVATIONS = tuple(row.name for row in _ELEMENTWISE)
"""Element-wise ops allowed between the two projections of a bottleneck."""

POOLINGS: Mapping[str, OpSpec] = {row.pooling: row for row in _POOLING}
"""Pooling ops, by their names in options and records."""

POOLING_HELP = f"Input of the head: {', '.join(row.pooled for row in _POOLING[:-1])} or {_POOLING[-1].pooled}."

if TYPE_CHECKING:
    Pooling = str
else:  # records and schemas take their choices from this hint
    Pooling = Literal[tuple(POOLINGS)]


def activation_named(name: str) -> str:
    """Return the op of an activation by its own name, or by that in transformers or AdapterHub, in any case.

    Raises `UsageError` where there is no such op, as for `gelu_10`, `laplace`, `prelu` and `xielu`.
    """
    names = {known: row.name for row in _ELEMENTWISE for known in (row.name, *row.also_called)}
    if name.lower() not in names:
        expected = f"one of {', '.join(sorted(names))}"
        raise UsageError("an activation that has no op here", found=f"`{name}`", expected=expected)
    return names[name.lower()]


def check_attributes(spec: OpSpec, attributes: Mapping[str, float], where: str) -> None:
    """Check that the attributes are those of the op, each within its range."""
    _check_names("attributes", set(attributes), set(spec.attributes), set(), where)
    for name, interval in spec.attributes.items():
        number = attributes[name]
        if number not in interval:
            raise GraphError(f"attribute `{name}` is out of range", where=where, found=number, expected=interval)


def bind_dimensions(
    spec: OpSpec, inputs: tuple[Shape, ...], roles: Mapping[str, str], shapes: Mapping[str, Shape], where: str
) -> dict[str, Dim]:
    """Return the op's dimensions in the graph's terms, from its input shapes and the parameter of each role.

    Raises `GraphError` if a role is missing or left over, or a parameter has no shape or not the one that its role asks
    for.
    """
    needed = {parameter.role for parameter in spec.parameters if not parameter.optional}
    allowed = {parameter.role for parameter in spec.parameters}
    _check_names("parameters", set(roles), needed, allowed - needed, where)
    dims: dict[str, Dim] = {"in": inputs[0][-1]}
    if spec.arity.step:
        dims["values"] = len(inputs) // spec.arity.step
    for parameter in spec.parameters:
        if parameter.role not in roles:
            continue
        name, template = roles[parameter.role], parameter.shape
        shape = shapes.get(name)
        if shape is None:
            expected = "an entry in `parameters`"
            raise GraphError("a parameter has no shape", where=where, found=f"`{name}`", expected=expected)
        pairs = zip(template, shape, strict=False)
        bound = tuple(dims.setdefault(symbol, dim) if isinstance(symbol, str) else symbol for symbol, dim in pairs)
        if len(shape) != len(template) or bound != shape:
            wanted = [dims.get(symbol, symbol) if isinstance(symbol, str) else symbol for symbol in template]
            raise GraphError(f"parameter `{name}` has a wrong shape", where=where, found=list(shape), expected=wanted)
    return dims


def check_three_axes(op: str, output: str, rank: int | None) -> None:
    """Refuse with `GraphError` a value that an op with `three_axes` reads unless its rank, if known, is 3.

    Some bases flatten [batch, tokens, width] to two axes; `output` is the value that the op defines.
    """
    if rank not in {None, 3}:
        raise GraphError(
            "an op that tells rows from tokens reads a value that has both on one axis",
            where=f"`{output}` (`{op}`)",
            found=f"{rank} axes",
            expected="[batch, tokens, width]",
            fix="choose a kind of adapter without this op, or export the base so that it keeps the two apart",
        )


def broken_products(spec: OpSpec, numbers: Mapping[str, int]) -> Iterator[str]:
    """Yield, in words, known dimensions that are not the product of others that the op requires."""
    for name, factors in spec.products.items():
        if not {name, *factors} <= numbers.keys():
            continue
        product = math.prod(numbers[factor] for factor in factors)
        if numbers[name] != product:
            formula = " = ".join(filter(None, [name, "·".join(factors)]))
            yield f"{formula} is {numbers[name]}, not {product}"


def _check_names(what: str, actual: set[str], needed: set[str], optional: set[str], where: str) -> None:
    if not needed <= actual <= needed | optional:
        names = ", ".join(sorted(needed)) or "none"
        more = f" (and perhaps {', '.join(sorted(optional))})" if optional else ""
        raise GraphError(f"wrong {what}", where=where, found=", ".join(sorted(actual)) or "none", expected=names + more)
