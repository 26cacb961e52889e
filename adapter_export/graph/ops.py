"""The vocabulary: every op that an adapter graph may use, given once.

What an op computes is defined by the NumPy lowering (`adapter_export.reference`); here stand the facts that need no
arithmetic: how many values it reads, which parameters and attributes it has, which shape it returns, what it costs.

Shapes are tuples of dimensions; a dimension is a number or a symbol such as `d` (the site's width) or `b` (the
bottleneck). Ops work on the last axis and leave the axes before it alone, unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

from adapter_export.graph import shape_rules
from adapter_export.graph.op_spec import SECOND_VERSION, Arity, Dim, Interval, OpSpec, ParameterSpec, Shape

__all__ = ["ACTIVATIONS", "BOUND_OPS", "OPS", "THREE_AXES_OPS", "Dim", "Interval", "OpSpec", "Shape"]

_FLOAT32_RANGE = Interval(-3.4e38, 3.4e38)
_PROBABILITY = Interval(0, 1, half_open=True)
_EPSILON = Interval(1e-12, 1)
_TWO = Arity(2)

_PROJECTIONS = (
    OpSpec(
        "linear",
        "x @ W + b, W [in, out], b [out]",
        parameters=(ParameterSpec("weight", ("in", "out")), ParameterSpec("bias", ("out",), optional=True)),
        shape=shape_rules.linear,
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
        shape=shape_rules.linear,
        products={"in": ("n", "p"), "out": ("n", "q")},
        multiply_accumulates=lambda dims: dims["n"] * dims["p"] * dims["n"] * dims["q"],
        since=SECOND_VERSION,
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
    OpSpec("leaky_relu", "x where x ≥ 0, slope·x elsewhere", attributes={"slope": _FLOAT32_RANGE}),
    OpSpec("relu6", "min(max(x, 0), 6) (Krizhevsky 2010, §3)", since=SECOND_VERSION),
    OpSpec("relu_squared", "max(x, 0)² (So et al. 2021, §3)", since=SECOND_VERSION),
    OpSpec("mish", "x·tanh(log(1 + exp(x))) (Misra 2019, §2)", since=SECOND_VERSION),
    OpSpec("elu", "x where x > 0, exp(x) − 1 elsewhere (Clevert et al. 2015, §3)", since=SECOND_VERSION),
    OpSpec("identity", "x"),
)

_FACTORS = (
    OpSpec("scale", "factor·x", attributes={"factor": _FLOAT32_RANGE}),
    OpSpec("learned_scale", "x·w, w [1]", parameters=(ParameterSpec("weight", (1,)),), since=SECOND_VERSION),
    OpSpec("scale_features", "x·w, w [in]", parameters=(ParameterSpec("weight", ("in",)),), since=SECOND_VERSION),
    OpSpec("keep_first_half", "x in the first ⌊in/2⌋ features, 0 in the others", since=SECOND_VERSION),
    OpSpec("keep_second_half", "0 in the first ⌊in/2⌋ features, x in the others", since=SECOND_VERSION),
    OpSpec(
        "gate",
        "x·meanₜ(y), y [batch, tokens, 1] and the mean over all tokens, padding included",
        arity=_TWO,
        shape=shape_rules.gated,
        since=SECOND_VERSION,
    ),
    OpSpec(
        "dropout",
        "x; in training each element is 0 with probability rate, else x/(1 − rate)",
        attributes={"rate": _PROBABILITY},
    ),
    OpSpec(
        "drop_path",
        "x; in training each row is 0 with probability rate, else x/(1 − rate) (Huang et al. 2016, §3)",
        attributes={"rate": _PROBABILITY},
        since=SECOND_VERSION,
    ),
)

_SUMS = (
    OpSpec("add", "x + y", arity=_TWO, shape=shape_rules.all_equal),
    OpSpec("multiply", "x·y", arity=_TWO, shape=shape_rules.all_equal),
    OpSpec(
        "dot",
        "Σ x·y over the last axis, which becomes 1",
        arity=_TWO,
        shape=shape_rules.one_number,
        since=SECOND_VERSION,
    ),
    OpSpec(
        "mix",
        "Σᵢ weights[:, i]·vᵢ of the values v read; one row of weights, or at run time one for each row of the batch",
        arity=Arity(1, 1),
        parameters=(ParameterSpec("weights", ("rows", "values")),),
        shape=shape_rules.equal_per_token,
        products={"rows": ()},
        since=SECOND_VERSION,
    ),
    OpSpec(
        "softmax_mix",
        "Σᵢ pᵢ·vᵢ, p = softmax(s/temperature), of as many scores s [batch, tokens, 1] and then values v",
        arity=Arity(2, 2),
        attributes={"temperature": Interval(1e-6, 1e6)},
        shape=shape_rules.mixed_by_scores,
        since=SECOND_VERSION,
    ),
)

_NORMS = (
    OpSpec(
        "layer_norm",
        "(x − mean)/√(var + epsilon)·w + b over the last axis (Ba et al. 2016, §3)",
        parameters=(
            ParameterSpec("weight", ("in",)),
            ParameterSpec("bias", ("in",), optional=True, optional_since=SECOND_VERSION),
        ),
        attributes={"epsilon": _EPSILON},
    ),
    OpSpec(
        "rms_norm",
        "x/√(mean(x²) + epsilon)·w over the last axis (Zhang & Sennrich 2019, §3)",
        parameters=(ParameterSpec("weight", ("in",)),),
        attributes={"epsilon": _EPSILON},
        since=SECOND_VERSION,
    ),
    OpSpec(
        "base_norm",
        "the norm that the base itself applies to x + h here, with its weights",
        shape=shape_rules.of_base_norm,
        since=SECOND_VERSION,
    ),
    OpSpec(
        "l2_normalise", "x/max(‖x‖, 1e-12), ‖x‖ the root of the sum of squares over the last axis", since=SECOND_VERSION
    ),
)

_POOLING = (
    OpSpec("first_token", "x[:, 0], from [batch, tokens, width] to [batch, width]", shape=shape_rules.without_tokens),
    OpSpec(
        "mean_pool",
        "Σₜ mask·x / max(Σₜ mask, 1), from [batch, tokens, width] and [batch, tokens] to [batch, width]",
        arity=_TWO,
        shape=shape_rules.masked,
    ),
)

OPS: Mapping[str, OpSpec] = {
    row.name: row for row in (*_PROJECTIONS, *_ELEMENTWISE, *_FACTORS, *_SUMS, *_NORMS, *_POOLING)
}

THREE_AXES_OPS = frozenset({"gate", "mix", "drop_path", "first_token", "mean_pool"})
"""Ops that tell rows from tokens: where a base flattens both to one axis, they compute something else."""

BOUND_OPS = frozenset({"base_norm"})
"""Ops that no lowering has: `adapter_export.graph.bind` replaces them by others, as the base at hand says."""

ACTIVATIONS = tuple(row.name for row in _ELEMENTWISE)
"""The element-wise ops that may stand between the two projections of a bottleneck."""
