"""The NumPy lowering: what every op means. It computes in the dtype of what it is given, float64 for a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from adapter_export.dtypes import Array
from adapter_export.graph.graph import Lowering, Node
from adapter_export.graph.numpy_lowering.activations import FUNCTIONS
from adapter_export.graph.ops import check_three_axes

Values = tuple[Array, ...]
Owned = Mapping[str, Array]

SMALLEST_NORM = 1e-12
"""The smallest divisor of `l2_normalise`."""


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


def token_shares(mask: Array) -> Array:
    """The share of each token in its row's mean, mask/max(Σ mask, 1): [batch, tokens]."""
    shares: Array = mask / np.maximum(mask.sum(-1, keepdims=True), 1)
    return shares


def kronecker_sum(rule: Array, products: Array) -> Array:
    """Σᵢ rule[i] ⊗ products[i], from [n, n, n] and [n, p, q] to [n·p, n·q]."""
    n, p, q = products.shape
    blocks: Array = np.einsum("iac,ipq->apcq", rule, products)
    return blocks.reshape(n * p, n * q)


def half(x: Array, *, first: bool) -> Array:
    """1 in the features of one half and 0 in the others; the first half is the shorter one: [width]."""
    width = x.shape[-1]
    chosen: Array = ((np.arange(width) < width // 2) == first).astype(x.dtype)
    return chosen


def shares_of(scores: Values, temperature: float) -> Array:
    """softmax(scores/temperature) over the scores, [N, …, 1]."""
    stacked: Array = np.stack(scores) / temperature
    powers: Array = np.exp(stacked - stacked.max(0))
    shares: Array = powers / powers.sum(0)
    return shares


def column(weights: Array, index: int) -> Array:
    """The weight of one value of a mix, beside values [batch, tokens, width]: [rows, 1, 1]."""
    chosen: Array = weights[:, index, None, None]
    return chosen


def _elementwise(function: Callable[[Array], Array]) -> Lowering[Array]:
    return lambda _node, values, _owned: function(values[0])


def _linear(_: Node, values: Values, owned: Owned) -> Array:
    product = values[0] @ owned["weight"]
    return product + owned["bias"] if "bias" in owned else product


def _phm_linear(_: Node, values: Values, owned: Owned) -> Array:
    weight = kronecker_sum(owned["rule"], owned["left"] @ owned["right"])
    product: Array = values[0] @ weight + owned["bias"]
    return product


def _leaky_relu(node: Node, values: Values, _: Owned) -> Array:
    (x,) = values
    return np.where(x >= 0, x, node.attributes["slope"] * x)


def _scale(node: Node, values: Values, _: Owned) -> Array:
    return node.attributes["factor"] * values[0]


def _weighted(_: Node, values: Values, owned: Owned) -> Array:
    return values[0] * owned["weight"]


def _gate(node: Node, values: Values, _: Owned) -> Array:
    x, gate = values
    check_three_axes(node.op, node.output, x.ndim)
    gated: Array = x * gate.mean(1, keepdims=True)
    return gated


def _dot(_: Node, values: Values, __: Owned) -> Array:
    product: Array = (values[0] * values[1]).sum(-1, keepdims=True)
    return product


def _mix(node: Node, values: Values, owned: Owned) -> Array:
    check_three_axes(node.op, node.output, values[0].ndim)
    return _sum([column(owned["weights"], index) * value for index, value in enumerate(values)])


def _softmax_mix(node: Node, values: Values, _: Owned) -> Array:
    count = len(values) // 2
    shares = shares_of(values[:count], node.attributes["temperature"])
    return _sum([share * value for share, value in zip(shares, values[count:], strict=True)])


def _sum(parts: list[Array]) -> Array:
    total: Array = np.sum(parts, 0)
    return total


def _layer_norm(node: Node, values: Values, owned: Owned) -> Array:
    normal, _ = standardised(values[0], node.attributes["epsilon"])
    scaled = normal * owned["weight"]
    return scaled + owned["bias"] if "bias" in owned else scaled


def _rms_norm(node: Node, values: Values, owned: Owned) -> Array:
    (x,) = values
    return x / root_mean_square(x, node.attributes["epsilon"]) * owned["weight"]


def _l2_normalise(_: Node, values: Values, __: Owned) -> Array:
    return values[0] / np.maximum(length(values[0]), SMALLEST_NORM)


def _mean_pool(_: Node, values: Values, __: Owned) -> Array:
    x, mask = values
    mean: Array = (token_shares(mask)[:, :, None] * x).sum(1)
    return mean


LOWERINGS: Mapping[str, Lowering[Array]] = {
    "linear": _linear,
    "phm_linear": _phm_linear,
    **{op: _elementwise(function) for op, (function, _) in FUNCTIONS.items()},
    "leaky_relu": _leaky_relu,
    "scale": _scale,
    "learned_scale": _weighted,
    "scale_features": _weighted,
    "keep_first_half": _elementwise(lambda x: np.where(half(x, first=True) > 0, x, 0)),
    "keep_second_half": _elementwise(lambda x: np.where(half(x, first=False) > 0, x, 0)),
    "gate": _gate,
    "dropout": _elementwise(lambda x: x),
    "drop_path": _elementwise(lambda x: x),
    "add": lambda _node, values, _owned: values[0] + values[1],
    "multiply": lambda _node, values, _owned: values[0] * values[1],
    "dot": _dot,
    "mix": _mix,
    "softmax_mix": _softmax_mix,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "l2_normalise": _l2_normalise,
    "first_token": _elementwise(lambda x: x[:, 0]),
    "mean_pool": _mean_pool,
}
"""Every op at inference, where dropout and drop path do nothing."""
