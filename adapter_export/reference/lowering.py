"""The NumPy lowering: what every op means. It computes in the dtype of what it is given, float64 for a reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from adapter_export.dtypes import Array
from adapter_export.graph.graph import Node
from adapter_export.graph.interpret import Lowering
from adapter_export.reference.erf import erf

Values = tuple[Array, ...]
Owned = Mapping[str, Array]

QUICK_GELU_FACTOR = 1.702
GELU_TANH_FACTOR = math.sqrt(2 / math.pi)
GELU_TANH_CUBIC = 0.044715


def normal_distribution(x: Array) -> Array:
    """Φ(x), the probability that a standard normal variable is below x."""
    return (1 + erf(x / math.sqrt(2))) / 2


def sigmoid(x: Array) -> Array:
    """σ(x) = 1/(1 + exp(−x)), in the form that does not overflow."""
    return np.exp(-np.logaddexp(np.zeros_like(x), -x))


def gelu_tanh_argument(x: Array) -> Array:
    """√(2/π)·(x + 0.044715·x³), what the tanh form of GELU takes the tanh of."""
    return GELU_TANH_FACTOR * (x + GELU_TANH_CUBIC * x**3)


def standardised(x: Array, epsilon: float) -> tuple[Array, Array]:
    """(x − mean)/√(var + epsilon) over the last axis, and √(var + epsilon) with a last axis of length 1."""
    centred: Array = x - x.mean(-1, keepdims=True)
    deviation: Array = np.sqrt(np.square(centred).mean(-1, keepdims=True) + epsilon)
    return centred / deviation, deviation


def root_mean_square(x: Array, epsilon: float) -> Array:
    """√(mean(x²) + epsilon) over the last axis, which has length 1 in the result."""
    root: Array = np.sqrt(np.square(x).mean(-1, keepdims=True) + epsilon)
    return root


def token_shares(mask: Array) -> Array:
    """The share of each token in its row's mean, mask/max(Σ mask, 1): [batch, tokens]."""
    shares: Array = mask / np.maximum(mask.sum(-1, keepdims=True), 1)
    return shares


def _elementwise(function: Callable[[Array], Array]) -> Lowering[Array]:
    return lambda _node, values, _owned: function(values[0])


def _linear(_: Node, values: Values, owned: Owned) -> Array:
    product = values[0] @ owned["weight"]
    return product + owned["bias"] if "bias" in owned else product


def _leaky_relu(node: Node, values: Values, _: Owned) -> Array:
    (x,) = values
    return np.where(x >= 0, x, node.attributes["slope"] * x)


def _scale(node: Node, values: Values, _: Owned) -> Array:
    return node.attributes["factor"] * values[0]


def _layer_norm(node: Node, values: Values, owned: Owned) -> Array:
    normal, _ = standardised(values[0], node.attributes["epsilon"])
    scaled = normal * owned["weight"]
    return scaled + owned["bias"] if "bias" in owned else scaled


def _rms_norm(node: Node, values: Values, owned: Owned) -> Array:
    (x,) = values
    return x / root_mean_square(x, node.attributes["epsilon"]) * owned["weight"]


def _mean_pool(_: Node, values: Values, __: Owned) -> Array:
    x, mask = values
    mean: Array = (token_shares(mask)[:, :, None] * x).sum(1)
    return mean


LOWERINGS: Mapping[str, Lowering[Array]] = {
    "linear": _linear,
    "relu": _elementwise(lambda x: np.maximum(x, 0)),
    "gelu": _elementwise(lambda x: x * normal_distribution(x)),
    "gelu_tanh": _elementwise(lambda x: x / 2 * (1 + np.tanh(gelu_tanh_argument(x)))),
    "quick_gelu": _elementwise(lambda x: x * sigmoid(QUICK_GELU_FACTOR * x)),
    "silu": _elementwise(lambda x: x * sigmoid(x)),
    "tanh": _elementwise(np.tanh),
    "sigmoid": _elementwise(sigmoid),
    "leaky_relu": _leaky_relu,
    "identity": _elementwise(lambda x: x),
    "scale": _scale,
    "dropout": _elementwise(lambda x: x),
    "add": lambda _node, values, _owned: values[0] + values[1],
    "multiply": lambda _node, values, _owned: values[0] * values[1],
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "first_token": _elementwise(lambda x: x[:, 0]),
    "mean_pool": _mean_pool,
}
"""Every op at inference, where dropout does nothing."""
