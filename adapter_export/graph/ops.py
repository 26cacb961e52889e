"""Every op that an adapter graph may use: arity, parameters, attributes, shape rule and cost.

The NumPy lowering (`adapter_export.graph.numpy_lowering`) defines what an op computes. A dimension is a number or a
symbol such as `d` (the site's width) or `b` (the bottleneck). Ops work on the last axis unless they say otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from adapter_export.errors import GraphError

Dim = int | str
Shape = tuple[Dim, ...]

ShapeRule = Callable[[tuple[Shape, ...], Mapping[str, Dim]], Shape]
"""From the shapes read and the op's own dimensions to the shape returned; raises `GraphError`."""

CostRule = Callable[[Mapping[str, int]], int]
"""From the op's own dimensions to multiply-accumulates of matrix products per token, or per row after pooling."""


@dataclass(frozen=True)
class ParameterSpec:
    """A tensor of an op: its role, such as `weight`, and its shape in the op's own terms.

    `in` is the last axis of the first value that the op reads, `values` how many values a variadic op reads.
    """

    role: str
    shape: tuple[Dim, ...]
    optional: bool = False


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`, without `high` where the interval is half open. NaN is in none."""

    low: float
    high: float = math.inf
    half_open: bool = False

    def __contains__(self, number: float) -> bool:
        return self.low <= number < self.high or (number == self.high and not self.half_open)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"at least {self.low:g}"
        return f"{self.low:g} to {'below ' if self.half_open else ''}{self.high:g}"


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
    """That of the first value."""
    return inputs[0]


def all_equal(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    """The shape that all values have."""
    if len(set(inputs)) != 1:
        found = " and ".join(map(str, inputs))
        raise GraphError("values of different shapes meet", found=found, expected="equal shapes")
    return inputs[0]


def linear(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """The last axis becomes `out`."""
    return (*inputs[0][:-1], dims["out"])


def one_number(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """Values of one shape, whose last axis becomes 1."""
    return (*all_equal(inputs, dims)[:-1], 1)


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
    """The shape [batch, tokens, width] that all values have."""
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
    """The shape that the base itself normalises there."""
    if inputs[0] != ("batch", "tokens", "d"):
        raise GraphError("the base's norm is of width `d`", found=inputs[0], expected="[batch, tokens, d]")
    return inputs[0]


def _three_axes(shape: Shape) -> tuple[Dim, Dim, Dim]:
    if len(shape) != 3:
        raise GraphError("an op over tokens reads one value per token", found=shape, expected="[batch, tokens, width]")
    return shape[0], shape[1], shape[2]


@dataclass(frozen=True)
class OpSpec:
    """One op, with its formula as `summary`.

    `attributes` are the numbers that a node must state, with their ranges; `products` the dimensions that are, in
    numbers, the product of others (1 where there are none). Element-wise work is not counted in `multiply_accumulates`.
    """

    name: str
    summary: str
    arity: Arity = Arity()
    parameters: tuple[ParameterSpec, ...] = ()
    attributes: Mapping[str, Interval] = field(default_factory=dict)
    shape: ShapeRule = same_shape
    products: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    multiply_accumulates: CostRule = lambda _: 0


FLOAT32_RANGE = Interval(-3.4e38, 3.4e38)
PROBABILITY = Interval(0, 1, half_open=True)
EPSILON = Interval(1e-12, 1)
TEMPERATURE = Interval(1e-6, 1e6)
_TWO = Arity(2)

_PROJECTIONS = (
    OpSpec(
        "linear",
        "x @ W + b, W [in, out], b [out]",
        parameters=(ParameterSpec("weight", ("in", "out")), ParameterSpec("bias", ("out",), optional=True)),
        shape=linear,
        multiply_accumulates=lambda dims: dims["in"] * dims["out"],
    ),
    OpSpec(
        "phm_linear",
        "x @ W + b, W = Σᵢ rule[i] ⊗ (left[i] @ right[i]) of shape [n·p, n·q], ⊗ the Kronecker product "
        "(Mahabadi et al. 2021, §3.1)",
        parameters=(
            ParameterSpec("rule", ("n", "n", "n")),
            ParameterSpec("left", ("n", "p", "k")),
            ParameterSpec("right", ("n", "k", "q")),
            ParameterSpec("bias", ("out",)),
        ),
        shape=linear,
        products={"in": ("n", "p"), "out": ("n", "q")},
        multiply_accumulates=lambda dims: dims["n"] * dims["p"] * dims["n"] * dims["q"],
    ),
)

_ELEMENTWISE = (
    OpSpec("relu", "max(x, 0)"),
    OpSpec("gelu", "x·Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016, §2)"),
    OpSpec("gelu_tanh", "x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))) (Hendrycks & Gimpel 2016, §2)"),
    OpSpec("quick_gelu", "x·σ(1.702·x) (Hendrycks & Gimpel 2016, §2)"),
    OpSpec("silu", "x·σ(x) (Elfwing et al. 2017, §2)"),
    OpSpec("tanh", "tanh(x)"),
    OpSpec("sigmoid", "σ(x) = 1/(1 + exp(−x))"),
    OpSpec("leaky_relu", "x where x ≥ 0, slope·x elsewhere", attributes={"slope": FLOAT32_RANGE}),
    OpSpec("relu6", "min(max(x, 0), 6) (Krizhevsky 2010, §3)"),
    OpSpec("relu_squared", "max(x, 0)² (So et al. 2021, §3)"),
    OpSpec("mish", "x·tanh(log(1 + exp(x))) (Misra 2019, §2)"),
    OpSpec("elu", "x where x > 0, exp(x) − 1 elsewhere (Clevert et al. 2015, §3)"),
    OpSpec("identity", "x"),
)

_FACTORS = (
    OpSpec("scale", "factor·x", attributes={"factor": FLOAT32_RANGE}),
    OpSpec("learned_scale", "x·w, w [1]", parameters=(ParameterSpec("weight", (1,)),)),
    OpSpec("scale_features", "x·w, w [in]", parameters=(ParameterSpec("weight", ("in",)),)),
    OpSpec("keep_first_half", "x in the first ⌊in/2⌋ features, 0 in the others"),
    OpSpec("keep_second_half", "0 in the first ⌊in/2⌋ features, x in the others"),
    OpSpec(
        "gate",
        "x·meanₜ(y), y [batch, tokens, 1] and the mean over all tokens, padding included",
        arity=_TWO,
        shape=gated,
    ),
    OpSpec(
        "dropout",
        "x; in training each element is 0 with probability rate, else x/(1 − rate)",
        attributes={"rate": PROBABILITY},
    ),
    OpSpec(
        "drop_path",
        "x; in training each row is 0 with probability rate, else x/(1 − rate) (Huang et al. 2016, §3)",
        attributes={"rate": PROBABILITY},
    ),
)

_SUMS = (
    OpSpec("add", "x + y", arity=_TWO, shape=all_equal),
    OpSpec("multiply", "x·y", arity=_TWO, shape=all_equal),
    OpSpec("dot", "Σ x·y over the last axis, which becomes 1", arity=_TWO, shape=one_number),
    OpSpec(
        "mix",
        "Σᵢ weights[:, i]·vᵢ of the values v read; one row of weights, or at run time one for each row of the batch",
        arity=Arity(1, 1),
        parameters=(ParameterSpec("weights", ("rows", "values")),),
        shape=equal_per_token,
        products={"rows": ()},
    ),
    OpSpec(
        "softmax_mix",
        "Σᵢ pᵢ·vᵢ, p = softmax(s/temperature), of as many scores s [batch, tokens, 1] and then values v",
        arity=Arity(2, 2),
        attributes={"temperature": TEMPERATURE},
        shape=mixed_by_scores,
    ),
)

_NORMS = (
    OpSpec(
        "layer_norm",
        "(x − mean)/√(var + epsilon)·w + b over the last axis (Ba et al. 2016, §3)",
        parameters=(ParameterSpec("weight", ("in",)), ParameterSpec("bias", ("in",), optional=True)),
        attributes={"epsilon": EPSILON},
    ),
    OpSpec(
        "rms_norm",
        "x/√(mean(x²) + epsilon)·w over the last axis (Zhang & Sennrich 2019, §3)",
        parameters=(ParameterSpec("weight", ("in",)),),
        attributes={"epsilon": EPSILON},
    ),
    OpSpec("base_norm", "the norm that the base itself applies to x + h here, with its weights", shape=of_base_norm),
    OpSpec("l2_normalise", "x/max(‖x‖, 1e-12), ‖x‖ the root of the sum of squares over the last axis"),
)

_POOLING = (
    OpSpec("first_token", "x[:, 0], from [batch, tokens, width] to [batch, width]", shape=without_tokens),
    OpSpec(
        "mean_pool",
        "Σₜ mask·x / max(Σₜ mask, 1), from [batch, tokens, width] and [batch, tokens] to [batch, width]",
        arity=_TWO,
        shape=masked,
    ),
)

OPS: Mapping[str, OpSpec] = {
    row.name: row for row in (*_PROJECTIONS, *_ELEMENTWISE, *_FACTORS, *_SUMS, *_NORMS, *_POOLING)
}

THREE_AXES_OPS = frozenset({"gate", "mix", "drop_path", "first_token", "mean_pool"})
"""Ops that tell rows from tokens: where a base flattens both to one axis, they compute something else."""

BOUND_OPS = frozenset({"base_norm"})
"""Ops that no lowering has: `graph.bind_base_norm` replaces them by others, as the base at hand says."""

ACTIVATIONS = tuple(row.name for row in _ELEMENTWISE)
"""The element-wise ops that may stand between the two projections of a bottleneck."""


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
    """The op's own dimensions in the graph's terms, from the shapes read and the graph's parameter for each role.

    Raises `GraphError` if a role is missing or left over, or a parameter has no shape or not the one that its role asks
    for.
    """
    needed = {parameter.role for parameter in spec.parameters if not parameter.optional}
    allowed = {parameter.role for parameter in spec.parameters}
    _check_names("parameters", set(roles), needed, allowed - needed, where)
    dims: dict[str, Dim] = {"in": inputs[0][-1]}
    if spec.arity.step:
        dims["values"] = len(inputs)
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
    """Refuse with `GraphError` a value that an op of `THREE_AXES_OPS` reads unless its rank, if known, is 3.

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
    """The known dimensions that are not the product of others as the op needs them to be, in words."""
    for name, factors in spec.products.items():
        if not {name, *factors} <= numbers.keys():
            continue
        product = math.prod(numbers[factor] for factor in factors)
        if numbers[name] != product:
            formula = " = ".join(filter(None, [name, "·".join(factors)]))
            yield f"{formula} is {numbers[name]}, not {product}"


def _check_names(what: str, found: set[str], needed: set[str], optional: set[str], where: str) -> None:
    if not needed <= found <= needed | optional:
        names = ", ".join(sorted(needed)) or "none"
        more = f" (and perhaps {', '.join(sorted(optional))})" if optional else ""
        raise GraphError(f"wrong {what}", where=where, found=", ".join(sorted(found)) or "none", expected=names + more)
