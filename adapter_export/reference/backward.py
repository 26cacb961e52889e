"""The gradients of every op, each the derivative of its function in `lowering.py`.

A rule takes the node, the values that it read, its parameters by role and the gradient of its output; it returns the
gradient of each value read, and of each parameter by role.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from adapter_export.dtypes import Array
from adapter_export.graph.graph import Node
from adapter_export.reference.lowering import (
    GELU_TANH_CUBIC,
    GELU_TANH_FACTOR,
    QUICK_GELU_FACTOR,
    Owned,
    Values,
    gelu_tanh_argument,
    normal_distribution,
    root_mean_square,
    sigmoid,
    standardised,
    token_shares,
)

Gradients = tuple[Values, dict[str, Array]]
Backward = Callable[[Node, Values, Owned, Array], Gradients]


def _elementwise(derivative: Callable[[Array], Array]) -> Backward:
    return lambda _node, values, _owned, gradient: ((gradient * derivative(values[0]),), {})


def _gelu(x: Array) -> Array:
    density: Array = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return normal_distribution(x) + x * density


def _gelu_tanh(x: Array) -> Array:
    tanh: Array = np.tanh(gelu_tanh_argument(x))
    slope: Array = GELU_TANH_FACTOR * (1 + 3 * GELU_TANH_CUBIC * x * x)
    return (1 + tanh) / 2 + x / 2 * (1 - tanh * tanh) * slope


def _swish(x: Array, factor: float) -> Array:
    """Of x·σ(factor·x)."""
    gate = sigmoid(factor * x)
    return gate + factor * x * gate * (1 - gate)


def _sigmoid(x: Array) -> Array:
    return sigmoid(x) * sigmoid(-x)


def _leaky_relu(node: Node, values: Values, _: Owned, gradient: Array) -> Gradients:
    return (np.where(values[0] > 0, gradient, node.attributes["slope"] * gradient),), {}


def _scale(node: Node, _: Values, __: Owned, gradient: Array) -> Gradients:
    return (node.attributes["factor"] * gradient,), {}


def _unchanged(_: Node, __: Values, ___: Owned, gradient: Array) -> Gradients:
    return (gradient,), {}


def _add(_: Node, __: Values, ___: Owned, gradient: Array) -> Gradients:
    return (gradient, gradient), {}


def _multiply(_: Node, values: Values, __: Owned, gradient: Array) -> Gradients:
    x, y = values
    return (gradient * y, gradient * x), {}


def _linear(_: Node, values: Values, owned: Owned, gradient: Array) -> Gradients:
    (x,) = values
    weight = owned["weight"]
    of_parameters: dict[str, Array] = {"weight": _rows(x).T @ _rows(gradient)}
    if "bias" in owned:
        of_parameters["bias"] = _rows(gradient).sum(0)
    return (gradient @ weight.T,), of_parameters


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
    "relu": _elementwise(lambda x: np.heaviside(x, 0)),
    "gelu": _elementwise(_gelu),
    "gelu_tanh": _elementwise(_gelu_tanh),
    "quick_gelu": _elementwise(lambda x: _swish(x, QUICK_GELU_FACTOR)),
    "silu": _elementwise(lambda x: _swish(x, 1.0)),
    "tanh": _elementwise(lambda x: 1 - np.square(np.tanh(x))),
    "sigmoid": _elementwise(_sigmoid),
    "leaky_relu": _leaky_relu,
    "identity": _unchanged,
    "scale": _scale,
    "dropout": _unchanged,
    "add": _add,
    "multiply": _multiply,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "first_token": _first_token,
    "mean_pool": _mean_pool,
}
