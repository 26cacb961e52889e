"""The gradients of every op, each the derivative of its function in `forward.py`.

A rule takes the node, the values that it read, its parameters by role and the gradient of its output; it returns the
gradient of each value read, and of each parameter by role.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from adapter_export.dtypes import Array
from adapter_export.graph.graph import Node
from adapter_export.graph.numpy_lowering.activations import FUNCTIONS
from adapter_export.graph.numpy_lowering.forward import (
    SMALLEST_NORM,
    Owned,
    Values,
    column,
    half,
    kronecker_sum,
    length,
    root_mean_square,
    shares_of,
    standardised,
    token_shares,
)

Gradients = tuple[Values, dict[str, Array]]
Backward = Callable[[Node, Values, Owned, Array], Gradients]


def _elementwise(derivative: Callable[[Array], Array]) -> Backward:
    return lambda _node, values, _owned, gradient: ((gradient * derivative(values[0]),), {})


def _unchanged(_: Node, __: Values, ___: Owned, gradient: Array) -> Gradients:
    return (gradient,), {}


def _leaky_relu(node: Node, values: Values, _: Owned, gradient: Array) -> Gradients:
    return (np.where(values[0] > 0, gradient, node.attributes["slope"] * gradient),), {}


def _linear(_: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    (x,) = values
    of_parameters: dict[str, Array] = {"weight": _rows(x).T @ _rows(gradient)}
    if "bias" in owned:
        of_parameters["bias"] = _rows(gradient).sum(0)
    return (gradient @ owned["weight"].T,), of_parameters


def _phm_linear(_: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
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


def _scale(node: Node, _: Values, __: Owned, gradient: Array) -> Gradients:
    return (node.attributes["factor"] * gradient,), {}


def _learned_scale(_: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    return (gradient * owned["weight"],), {"weight": (gradient * values[0]).sum(keepdims=True).reshape(1)}


def _scale_features(_: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    return (gradient * owned["weight"],), {"weight": _rows(gradient * values[0]).sum(0)}


def _gate(_: Node, values: Values, __: Owned, gradient: Array) -> Gradients:
    x, gate = values
    of_mean: Array = (gradient * x).sum((1, 2), keepdims=True)
    return (gradient * gate.mean(1, keepdims=True), np.broadcast_to(of_mean / gate.shape[1], gate.shape)), {}


def _add(_: Node, __: Values, ___: Owned, gradient: Array) -> Gradients:
    return (gradient, gradient), {}


def _multiply(_: Node, values: Values, __: Owned, gradient: Array) -> Gradients:
    """Also of a dot product, whose gradient is the same for all features."""
    x, y = values
    return (gradient * y, gradient * x), {}


def _mix(_: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    weights = owned["weights"]
    of_values = tuple(gradient * column(weights, index) for index in range(len(values)))
    per_row = np.stack([(gradient * value).sum((1, 2)) for value in values], -1)
    return of_values, {"weights": per_row if len(weights) > 1 else per_row.sum(0, keepdims=True)}


def _softmax_mix(node: Node, values: Values, _: Owned, gradient: Array) -> Gradients:
    count, temperature = len(values) // 2, node.attributes["temperature"]
    shares = shares_of(values[:count], temperature)
    of_shares = np.stack([(gradient * value).sum(-1, keepdims=True) for value in values[count:]])
    of_scores = shares * (of_shares - (shares * of_shares).sum(0)) / temperature
    return (*of_scores, *(gradient * share for share in shares)), {}


def _layer_norm(node: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    normal, deviation = standardised(values[0], node.attributes["epsilon"])
    inner: Array = gradient * owned["weight"]
    mean = inner.mean(-1, keepdims=True)
    along = (inner * normal).mean(-1, keepdims=True)
    of_parameters: dict[str, Array] = {"weight": _rows(gradient * normal).sum(0)}
    if "bias" in owned:
        of_parameters["bias"] = _rows(gradient).sum(0)
    of_x: Array = (inner - mean - normal * along) / deviation
    return (of_x,), of_parameters


def _rms_norm(node: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    (x,) = values
    root = root_mean_square(x, node.attributes["epsilon"])
    normal = x / root
    inner: Array = gradient * owned["weight"]
    of_x: Array = (inner - normal * (inner * normal).mean(-1, keepdims=True)) / root
    return (of_x,), {"weight": _rows(gradient * normal).sum(0)}


def _l2_normalise(_: Node, values: Values, __: Owned, gradient: Array) -> Gradients:
    (x,) = values
    size = length(x)
    normal = x / np.maximum(size, SMALLEST_NORM)
    # below the smallest norm the divisor is a constant
    along = np.where(size >= SMALLEST_NORM, (gradient * normal).sum(-1, keepdims=True), 0)
    return ((gradient - normal * along) / np.maximum(size, SMALLEST_NORM),), {}


def _first_token(_: Node, values: Values, __: Owned, gradient: Array) -> Gradients:
    of_x = np.zeros_like(values[0])
    of_x[:, 0] = gradient
    return (of_x,), {}


def _mean_pool(_: Node, values: Values, __: Owned, gradient: Array) -> Gradients:
    x, mask = values
    of_x: Array = token_shares(mask)[:, :, None] * gradient[:, None, :]
    count = mask.sum(-1, keepdims=True)
    divisor = np.maximum(count, 1)
    # a token adds itself to the sum and, where the divisor is the count, pulls the mean towards itself
    pull = np.where(count >= 1, (of_x * x).sum((1, 2))[:, None] / divisor, 0)
    of_mask: Array = (x @ gradient[:, :, None])[:, :, 0] / divisor - pull
    return (of_x, of_mask), {}


def _rows(x: Array) -> Array:
    """All axes but the last as one: [rows, width]."""
    return x.reshape(-1, x.shape[-1])


BACKWARD: Mapping[str, Backward] = {
    "linear": _linear,
    "phm_linear": _phm_linear,
    **{op: _elementwise(derivative) for op, (_, derivative) in FUNCTIONS.items()},
    "leaky_relu": _leaky_relu,
    "scale": _scale,
    "learned_scale": _learned_scale,
    "scale_features": _scale_features,
    "keep_first_half": _elementwise(lambda x: half(x, first=True)),
    "keep_second_half": _elementwise(lambda x: half(x, first=False)),
    "gate": _gate,
    "dropout": _unchanged,
    "drop_path": _unchanged,
    "add": _add,
    "multiply": _multiply,
    "dot": _multiply,
    "mix": _mix,
    "softmax_mix": _softmax_mix,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "l2_normalise": _l2_normalise,
    "first_token": _first_token,
    "mean_pool": _mean_pool,
}
