"""NumPy lowering: forward and backward of every op. It defines the meaning of ops.

It computes in the dtype of its inputs, float64 for a reference. A gradient is the derivative of the function
beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapter_export.dtypes import Array
from adapter_export.graph.graph import Lowering, Node
from adapter_export.graph.ops import INDEX_BASE, OPS, check_three_axes

Values = tuple[Array, ...]
Owned = Mapping[str, Array]
Gradients = tuple[Values, dict[str, Array]]
"""The gradient of each value read, and of each parameter by role."""

Backward = Callable[[Node, Values, Owned, Array], Gradients]
"""Takes the node, the values that it read, its parameters by role and the gradient of its output."""

Function = Callable[[Array], Array]

SMALLEST_NORM = 1e-12
"""The smallest divisor of `l2_normalise`."""


@dataclass(frozen=True)
class Rule:
    """An op at inference, without dropout and drop path, and its gradients."""

    forward: Lowering[Array]
    backward: Backward


# Element-wise functions, each with its derivative; where that has a jump, it is the one that torch takes.


def _elementwise(function: Function, derivative: Function) -> Rule:
    return Rule(
        lambda _node, values, _owned: function(values[0]),
        lambda _node, values, _owned, gradient: ((gradient * derivative(values[0]),), {}),
    )


_ERF = np.frompyfunc(math.erf, 1, 1)
_QUICK_GELU_FACTOR = 1.702
_GELU_TANH_FACTOR = math.sqrt(2 / math.pi)
_GELU_TANH_CUBIC = 0.044715
_RELU6_LIMIT = 6
"""Constants of the approximations of GELU (Hendrycks & Gimpel 2016, §2) and of ReLU6."""


def erf(x: Array) -> Array:
    """2/√π·∫₀ˣ exp(−t²) dt, element by element, which NumPy lacks: computed in float64, of the type of `x`."""
    return np.asarray(_ERF(x), x.dtype)


def normal_distribution(x: Array) -> Array:
    """Φ(x), the probability that a standard normal variable is below x."""
    return (1 + erf(x / math.sqrt(2))) / 2


def sigmoid(x: Array) -> Array:
    """σ(x) = 1/(1 + exp(−x)), in the form that does not overflow."""
    return np.exp(-np.logaddexp(np.zeros_like(x), -x))


def _gelu_slope(x: Array) -> Array:
    density: Array = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return normal_distribution(x) + x * density


def _gelu_tanh_argument(x: Array) -> Array:
    return _GELU_TANH_FACTOR * (x + _GELU_TANH_CUBIC * x**3)


def _gelu_tanh(x: Array) -> Array:
    value: Array = x / 2 * (1 + np.tanh(_gelu_tanh_argument(x)))
    return value


def _gelu_tanh_slope(x: Array) -> Array:
    tanh: Array = np.tanh(_gelu_tanh_argument(x))
    slope: Array = _GELU_TANH_FACTOR * (1 + 3 * _GELU_TANH_CUBIC * x * x)
    return (1 + tanh) / 2 + x / 2 * (1 - tanh * tanh) * slope


def _swish(factor: float) -> Rule:
    """x·σ(factor·x)."""

    def slope(x: Array) -> Array:
        gate = sigmoid(factor * x)
        return gate + factor * x * gate * (1 - gate)

    return _elementwise(lambda x: x * sigmoid(factor * x), slope)


def _gate_of_mish(x: Array) -> Array:
    gate: Array = np.tanh(np.logaddexp(np.zeros_like(x), x))
    return gate


def _mish_slope(x: Array) -> Array:
    gate = _gate_of_mish(x)
    return gate + x * (1 - gate * gate) * sigmoid(x)


def _elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _elu_slope(x: Array) -> Array:
    slope: Array = np.exp(np.minimum(x, 0))
    return slope


def _relu6_slope(x: Array) -> Array:
    return np.where((x > 0) & (x < _RELU6_LIMIT), np.ones_like(x), np.zeros_like(x))


def _leaky_relu(node: Node, values: Values, _: Owned) -> Array:
    (x,) = values
    return np.where(x >= 0, x, node.attributes["slope"] * x)


def _leaky_relu_gradients(node: Node, values: Values, _: Owned, gradient: Array) -> Gradients:
    return (np.where(values[0] > 0, gradient, node.attributes["slope"] * gradient),), {}


# Products with weights.


def kronecker_sum(rule: Array, products: Array) -> Array:
    """Σᵢ rule[i] ⊗ products[i], from [n, n, n] and [n, p, q] to [n·p, n·q]."""
    n, p, q = products.shape
    blocks: Array = np.einsum("iac,ipq->apcq", rule, products)
    return blocks.reshape(n * p, n * q)


def _rows(x: Array) -> Array:
    """Join all axes but the last: [rows, width]."""
    return x.reshape(-1, x.shape[-1])


def _linear(_: Node, values: Values, owned: Owned) -> Array:
    product = values[0] @ owned["weight"]
    return product + owned["bias"] if "bias" in owned else product


def _linear_gradients(_: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    (x,) = values
    of_parameters: dict[str, Array] = {"weight": _rows(x).T @ _rows(gradient)}
    if "bias" in owned:
        of_parameters["bias"] = _rows(gradient).sum(0)
    return (gradient @ owned["weight"].T,), of_parameters


def _phm_linear(_: Node, values: Values, owned: Owned) -> Array:
    weight = kronecker_sum(owned["rule"], owned["left"] @ owned["right"])
    product: Array = values[0] @ weight + owned["bias"]
    return product


def _phm_linear_gradients(_: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    (x,) = values
    rule, left, right = owned["rule"], owned["left"], owned["right"]
    products = left @ right
    n, p, q = products.shape
    of_weight = (_rows(x).T @ _rows(gradient)).reshape(n, p, n, q)
    of_products = np.einsum("iac,apcq->ipq", rule, of_weight)
    of_parameters = {
        "rule": np.einsum("apcq,ipq->iac", of_weight, products),
        "left": of_products @ right.transpose(0, 2, 1),
        "right": left.transpose(0, 2, 1) @ of_products,
        "bias": _rows(gradient).sum(0),
    }
    return (gradient @ kronecker_sum(rule, products).T,), of_parameters


# Lookups by ids [batch, tokens], and features by index.


def _lookup(_: Node, values: Values, owned: Owned) -> Array:
    rows: Array = owned["weight"][values[0].astype(np.int64)]
    return rows


def _lookup_gradients(_: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    (ids,) = values
    of_weight = np.zeros_like(owned["weight"])
    np.add.at(of_weight, ids.astype(np.int64), gradient)
    return (np.zeros_like(ids),), {"weight": of_weight}


def _indices(owned: Owned) -> Array:
    return INDEX_BASE * owned["high"] + owned["low"]


def _no_index_gradients(owned: Owned) -> dict[str, Array]:
    return {role: np.zeros_like(tensor) for role, tensor in owned.items()}


def _one_hot(_: Node, values: Values, owned: Owned) -> Array:
    equal: Array = (values[0][..., None] == _indices(owned)).astype(owned["high"].dtype)
    return equal


def _one_hot_gradients(_: Node, values: Values, owned: Owned, __: Array) -> Gradients:
    return (np.zeros_like(values[0]),), _no_index_gradients(owned)


def _places(like: Array, owned: Owned) -> Array:
    """Return 1 at the feature of each index, and 0 elsewhere: [indices, width]."""
    places: Array = (_indices(owned)[:, None] == np.arange(like.shape[-1])).astype(like.dtype)
    return places


def _scatter(_: Node, values: Values, owned: Owned) -> Array:
    x, like = values
    return x @ _places(like, owned)


def _scatter_gradients(_: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    like = values[1]
    return (gradient @ _places(like, owned).T, np.zeros_like(like)), _no_index_gradients(owned)


# Factors: constant, learned, per feature, per row.


def half(x: Array, *, first: bool) -> Array:
    """1 in the features of one half and 0 in the others; the first half is the shorter one: [width]."""
    width = x.shape[-1]
    chosen: Array = ((np.arange(width) < width // 2) == first).astype(x.dtype)
    return chosen


def _keep_half(*, first: bool) -> Rule:
    return _elementwise(
        lambda x: np.where(half(x, first=first) > 0, x, 0),
        lambda x: half(x, first=first),
    )


def _unchanged(_: Node, __: Values, ___: Owned, gradient: Array) -> Gradients:
    return (gradient,), {}


def _scale(node: Node, values: Values, _: Owned) -> Array:
    return node.attributes["factor"] * values[0]


def _scale_gradients(node: Node, _: Values, __: Owned, gradient: Array) -> Gradients:
    return (node.attributes["factor"] * gradient,), {}


def _weighted(_: Node, values: Values, owned: Owned) -> Array:
    return values[0] * owned["weight"]


def _learned_scale_gradients(_: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    return (gradient * owned["weight"],), {"weight": (gradient * values[0]).sum(keepdims=True).reshape(1)}


def _scale_features_gradients(_: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    return (gradient * owned["weight"],), {"weight": _rows(gradient * values[0]).sum(0)}


def _gate(node: Node, values: Values, _: Owned) -> Array:
    x, gate = values
    check_three_axes(node.op, node.output, x.ndim)
    gated: Array = x * gate.mean(1, keepdims=True)
    return gated


def _gate_gradients(_: Node, values: Values, __: Owned, gradient: Array) -> Gradients:
    x, gate = values
    of_mean: Array = (gradient * x).sum((1, 2), keepdims=True)
    return (gradient * gate.mean(1, keepdims=True), np.broadcast_to(of_mean / gate.shape[1], gate.shape)), {}


# Sums of values, of products, and weighted ones.


def shares_of(scores: Values, temperature: float) -> Array:
    """softmax(scores/temperature) over the scores, [N, …, 1]."""
    stacked: Array = np.stack(scores) / temperature
    powers: Array = np.exp(stacked - stacked.max(0))
    shares: Array = powers / powers.sum(0)
    return shares


def column(weights: Array, index: int) -> Array:
    """Return the weight of one value of a mix, beside values [batch, tokens, width]: [rows, 1, 1]."""
    chosen: Array = weights[:, index, None, None]
    return chosen


def _sum(parts: list[Array]) -> Array:
    total: Array = np.sum(parts, 0)
    return total


def _add_gradients(_: Node, __: Values, ___: Owned, gradient: Array) -> Gradients:
    return (gradient, gradient), {}


def _dot(_: Node, values: Values, __: Owned) -> Array:
    product: Array = (values[0] * values[1]).sum(-1, keepdims=True)
    return product


def _multiply_gradients(_: Node, values: Values, __: Owned, gradient: Array) -> Gradients:
    """Also of a dot product, whose gradient is the same for all features."""
    x, y = values
    return (gradient * y, gradient * x), {}


def _mix(node: Node, values: Values, owned: Owned) -> Array:
    check_three_axes(node.op, node.output, values[0].ndim)
    return _sum([column(owned["weights"], index) * value for index, value in enumerate(values)])


def _mix_gradients(_: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    weights = owned["weights"]
    of_values = tuple(gradient * column(weights, index) for index in range(len(values)))
    per_row = np.stack([(gradient * value).sum((1, 2)) for value in values], -1)
    return of_values, {"weights": per_row if len(weights) > 1 else per_row.sum(0, keepdims=True)}


def _softmax_mix(node: Node, values: Values, _: Owned) -> Array:
    count = len(values) // 2
    shares = shares_of(values[:count], node.attributes["temperature"])
    return _sum([share * value for share, value in zip(shares, values[count:], strict=True)])


def _softmax_mix_gradients(node: Node, values: Values, _: Owned, gradient: Array) -> Gradients:
    count, temperature = len(values) // 2, node.attributes["temperature"]
    shares = shares_of(values[:count], temperature)
    of_shares = np.stack([(gradient * value).sum(-1, keepdims=True) for value in values[count:]])
    of_scores = shares * (of_shares - (shares * of_shares).sum(0)) / temperature
    return (*of_scores, *(gradient * share for share in shares)), {}


# Norms over the last axis.


def standardised(x: Array, epsilon: float) -> tuple[Array, Array]:
    """(x − mean)/√(var + epsilon) over the last axis, and √(var + epsilon) with a last axis of length 1."""
    centred: Array = x - x.mean(-1, keepdims=True)
    deviation: Array = np.sqrt(np.square(centred).mean(-1, keepdims=True) + epsilon)
    return centred / deviation, deviation


def root_mean_square(x: Array, epsilon: float) -> Array:
    """√(mean(x²) + epsilon) over the last axis, which has length 1 in the result."""
    root: Array = np.sqrt(np.square(x).mean(-1, keepdims=True) + epsilon)
    return root


def length(x: Array) -> Array:
    """‖x‖ over the last axis, which has length 1 in the result."""
    root: Array = np.sqrt(np.square(x).sum(-1, keepdims=True))
    return root


def _layer_norm(node: Node, values: Values, owned: Owned) -> Array:
    normal, _ = standardised(values[0], node.attributes["epsilon"])
    scaled = normal * owned["weight"]
    return scaled + owned["bias"] if "bias" in owned else scaled


def _layer_norm_gradients(node: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    normal, deviation = standardised(values[0], node.attributes["epsilon"])
    inner: Array = gradient * owned["weight"]
    mean = inner.mean(-1, keepdims=True)
    along = (inner * normal).mean(-1, keepdims=True)
    of_parameters: dict[str, Array] = {"weight": _rows(gradient * normal).sum(0)}
    if "bias" in owned:
        of_parameters["bias"] = _rows(gradient).sum(0)
    of_x: Array = (inner - mean - normal * along) / deviation
    return (of_x,), of_parameters


def _rms_norm(node: Node, values: Values, owned: Owned) -> Array:
    (x,) = values
    return x / root_mean_square(x, node.attributes["epsilon"]) * owned["weight"]


def _rms_norm_gradients(node: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    (x,) = values
    root = root_mean_square(x, node.attributes["epsilon"])
    normal = x / root
    inner: Array = gradient * owned["weight"]
    of_x: Array = (inner - normal * (inner * normal).mean(-1, keepdims=True)) / root
    return (of_x,), {"weight": _rows(gradient * normal).sum(0)}


def _l2_normalise(_: Node, values: Values, __: Owned) -> Array:
    return values[0] / np.maximum(length(values[0]), SMALLEST_NORM)


def _l2_normalise_gradients(_: Node, values: Values, __: Owned, gradient: Array) -> Gradients:
    (x,) = values
    size = length(x)
    normal = x / np.maximum(size, SMALLEST_NORM)
    # below the smallest norm the divisor is a constant
    along = np.where(size >= SMALLEST_NORM, (gradient * normal).sum(-1, keepdims=True), 0)
    return ((gradient - normal * along) / np.maximum(size, SMALLEST_NORM),), {}


# From one value per token to one per row.


def token_shares(mask: Array) -> Array:
    """Return the share of each token in its row's mean, mask/max(Σ mask, 1): [batch, tokens]."""
    shares: Array = mask / np.maximum(mask.sum(-1, keepdims=True), 1)
    return shares


def _first_token_gradients(_: Node, values: Values, __: Owned, gradient: Array) -> Gradients:
    of_x = np.zeros_like(values[0])
    of_x[:, 0] = gradient
    return (of_x,), {}


def _mean_pool(_: Node, values: Values, __: Owned) -> Array:
    x, mask = values
    mean: Array = (token_shares(mask)[:, :, None] * x).sum(1)
    return mean


def _mean_pool_gradients(_: Node, values: Values, __: Owned, gradient: Array) -> Gradients:
    x, mask = values
    of_x: Array = token_shares(mask)[:, :, None] * gradient[:, None, :]
    count = mask.sum(-1, keepdims=True)
    divisor = np.maximum(count, 1)
    # a token adds itself to the sum and, where the divisor is the count, pulls the mean towards itself
    pull = np.where(count >= 1, (of_x * x).sum((1, 2))[:, None] / divisor, 0)
    of_mask: Array = (x @ gradient[:, :, None])[:, :, 0] / divisor - pull
    return (of_x, of_mask), {}


def _last_token(_: Node, values: Values, __: Owned) -> Array:
    x, mask = values
    rows, last = np.arange(len(x)), _last_kept(mask)
    return np.where(mask[rows, last, None] != 0, x[rows, last], 0)


def _last_token_gradients(_: Node, values: Values, __: Owned, gradient: Array) -> Gradients:
    x, mask = values
    rows, last = np.arange(len(x)), _last_kept(mask)
    of_x = np.zeros_like(x)
    of_x[rows, last] = gradient * (mask[rows, last, None] != 0)
    return (of_x, np.zeros_like(mask)), {}


def _last_kept(mask: Array) -> npt.NDArray[np.int64]:
    """Return the index of the rightmost kept token of each row [batch]; of the last token if none is kept."""
    last: npt.NDArray[np.int64] = mask.shape[1] - 1 - (mask[:, ::-1] != 0).argmax(1)
    return last


def _max_pool(_: Node, values: Values, __: Owned) -> Array:
    shown = values[1] != 0
    return np.where(shown.any(1)[:, None], _hidden_by(shown, values[0]).max(1), 0).astype(values[0].dtype)


def _max_pool_gradients(_: Node, values: Values, __: Owned, gradient: Array) -> Gradients:
    """Return the gradient, which goes to the first of equal maxima."""
    x, mask = values
    of_x, shown = np.zeros_like(x), mask != 0
    first = _hidden_by(shown, x).argmax(1)[:, None]
    np.put_along_axis(of_x, first, (gradient * shown.any(1)[:, None])[:, None], 1)
    return (of_x, np.zeros_like(mask)), {}


def _hidden_by(shown: npt.NDArray[np.bool_], x: Array) -> Array:
    return np.where(shown[:, :, None], x, -np.inf)


def _weighted_mean_pool(_: Node, values: Values, __: Owned) -> Array:
    x, mask = values
    mean: Array = (token_shares(mask * mask.cumsum(1))[:, :, None] * x).sum(1)
    return mean


def _weighted_mean_pool_gradients(node: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    x, mask = values
    place = mask.cumsum(1)
    (of_x, of_weights), _ = _mean_pool_gradients(node, (x, mask * place), owned, gradient)
    # each token is a factor of its own weight, and adds itself to the places of all tokens from it on
    of_mask: Array = of_weights * place + (of_weights * mask)[:, ::-1].cumsum(1)[:, ::-1]
    return (of_x, of_mask), {}


_NOTHING = Rule(lambda _node, values, _owned: values[0], _unchanged)

RULES: Mapping[str, Rule] = {
    "linear": Rule(_linear, _linear_gradients),
    "phm_linear": Rule(_phm_linear, _phm_linear_gradients),
    "lookup": Rule(_lookup, _lookup_gradients),
    "one_hot": Rule(_one_hot, _one_hot_gradients),
    "scatter": Rule(_scatter, _scatter_gradients),
    "relu": _elementwise(lambda x: np.maximum(x, 0), lambda x: np.heaviside(x, 0)),
    "gelu": _elementwise(lambda x: x * normal_distribution(x), _gelu_slope),
    "gelu_tanh": _elementwise(_gelu_tanh, _gelu_tanh_slope),
    "quick_gelu": _swish(_QUICK_GELU_FACTOR),
    "silu": _swish(1.0),
    "tanh": _elementwise(np.tanh, lambda x: 1 - np.square(np.tanh(x))),
    "sigmoid": _elementwise(sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    "leaky_relu": Rule(_leaky_relu, _leaky_relu_gradients),
    "relu6": _elementwise(lambda x: np.clip(x, 0, _RELU6_LIMIT), _relu6_slope),
    "relu_squared": _elementwise(lambda x: np.square(np.maximum(x, 0)), lambda x: 2 * np.maximum(x, 0)),
    "log_relu": _elementwise(
        lambda x: np.log1p(np.maximum(x, 0)), lambda x: np.heaviside(x, 0) / (1 + np.maximum(x, 0))
    ),
    "mish": _elementwise(lambda x: x * _gate_of_mish(x), _mish_slope),
    "elu": _elementwise(_elu, _elu_slope),
    "identity": _NOTHING,
    "scale": Rule(_scale, _scale_gradients),
    "learned_scale": Rule(_weighted, _learned_scale_gradients),
    "scale_features": Rule(_weighted, _scale_features_gradients),
    "keep_first_half": _keep_half(first=True),
    "keep_second_half": _keep_half(first=False),
    "gate": Rule(_gate, _gate_gradients),
    "dropout": _NOTHING,
    "drop_path": _NOTHING,
    "add": Rule(lambda _node, values, _owned: values[0] + values[1], _add_gradients),
    "multiply": Rule(lambda _node, values, _owned: values[0] * values[1], _multiply_gradients),
    "dot": Rule(_dot, _multiply_gradients),
    "mix": Rule(_mix, _mix_gradients),
    "softmax_mix": Rule(_softmax_mix, _softmax_mix_gradients),
    "layer_norm": Rule(_layer_norm, _layer_norm_gradients),
    "rms_norm": Rule(_rms_norm, _rms_norm_gradients),
    "l2_normalise": Rule(_l2_normalise, _l2_normalise_gradients),
    "first_token": Rule(lambda _node, values, _owned: values[0][:, 0], _first_token_gradients),
    "mean_pool": Rule(_mean_pool, _mean_pool_gradients),
    "last_token": Rule(_last_token, _last_token_gradients),
    "max_pool": Rule(_max_pool, _max_pool_gradients),
    "weighted_mean_pool": Rule(_weighted_mean_pool, _weighted_mean_pool_gradients),
}

LOWERINGS: Mapping[str, Lowering[Array]] = {op: rule.forward for op, rule in RULES.items()}
BACKWARD: Mapping[str, Backward] = {op: rule.backward for op, rule in RULES.items()}


def activation(op: str) -> Function:
    """Return an activation as a function of an array, with its default attributes."""
    node = Node(op, ("x",), "result", {}, OPS[op].defaults)
    return lambda x: LOWERINGS[op](node, (x,), {})
