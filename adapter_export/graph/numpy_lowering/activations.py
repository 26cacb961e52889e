"""Element-wise functions and their derivatives, without parameters or attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from adapter_export.dtypes import Array

_ERF = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    """2/√π·∫₀ˣ exp(−t²) dt, element by element, which NumPy lacks: computed in float64, of the type of `x`."""
    return np.asarray(_ERF(x), x.dtype)


Function = Callable[[Array], Array]

_QUICK_GELU_FACTOR = 1.702
_GELU_TANH_FACTOR = math.sqrt(2 / math.pi)
_GELU_TANH_CUBIC = 0.044715
_RELU6_LIMIT = 6


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


def _swish(factor: float) -> tuple[Function, Function]:
    """x·σ(factor·x) and its derivative."""

    def slope(x: Array) -> Array:
        gate = sigmoid(factor * x)
        return gate + factor * x * gate * (1 - gate)

    return lambda x: x * sigmoid(factor * x), slope


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


FUNCTIONS: Mapping[str, tuple[Function, Function]] = {
    "relu": (lambda x: np.maximum(x, 0), lambda x: np.heaviside(x, 0)),
    "gelu": (lambda x: x * normal_distribution(x), _gelu_slope),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_slope),
    "quick_gelu": _swish(_QUICK_GELU_FACTOR),
    "silu": _swish(1.0),
    "tanh": (np.tanh, lambda x: 1 - np.square(np.tanh(x))),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    "relu6": (lambda x: np.clip(x, 0, _RELU6_LIMIT), _relu6_slope),
    "relu_squared": (lambda x: np.square(np.maximum(x, 0)), lambda x: 2 * np.maximum(x, 0)),
    "mish": (lambda x: x * _gate_of_mish(x), _mish_slope),
    "elu": (_elu, _elu_slope),
    "identity": (lambda x: x, np.ones_like),
}
"""For each op its function and its derivative; where that has a jump, it is what torch takes."""
