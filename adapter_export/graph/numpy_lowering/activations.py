"""Element-wise functions and their derivatives, without parameters or attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from adapter_export.dtypes import Array

# Near zero, the Maclaurin series of erf(x)/x − 1 in powers of x²: Σ 2/√π·(−1)ⁿ/(n!·(2n + 1))·x²ⁿ − 1, whose first term
# is written out because the subtraction would cost it three bits; highest power first.
_TERMS = 20
_NEAR = (
    *(2 / math.sqrt(math.pi) * (-1) ** n / (math.factorial(n) * (2 * n + 1)) for n in range(_TERMS, 0, -1)),
    0.12837916709551257390,
)

# Beyond, erfc(x) = exp(−x²)·P(x)/Q(x): W. J. Cody, "Rational Chebyshev approximations for the error function",
# Math. Comp. 23 (1969), 631–637, with the coefficients of his program `calerf` (netlib, specfun); highest power first.
_FAR_P = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594e0,
    6.61191906371416295e1,
    2.98635138197400131e2,
    8.81952221241769090e2,
    1.71204761263407058e3,
    2.05107837782607147e3,
    1.23033935479799725e3,
)
_FAR_Q = (
    1.0,
    1.57449261107098347e1,
    1.17693950891312499e2,
    5.37181101862009858e2,
    1.62138957456669019e3,
    3.29079923573345963e3,
    4.36261909014324716e3,
    3.43936767414372164e3,
    1.23033935480374942e3,
)
_BOUNDARY = 1.0
_SATURATED = 6.0  # from 5.93 on, erf is 1 in float64


def erf(x: Array) -> Array:
    """2/√π·∫₀ˣ exp(−t²) dt, element by element, which NumPy lacks; float64 within 1 ulp, and float32 stays float32."""
    x = np.clip(x, -_SATURATED, _SATURATED)
    size = np.abs(x)
    near = x + x * _polynomial(_NEAR, x * x)
    tail = np.exp(-size * size) * (_polynomial(_FAR_P, size) / _polynomial(_FAR_Q, size))
    return np.where(size <= _BOUNDARY, near, np.copysign(1.0 - tail, x))


def _polynomial(coefficients: Sequence[float], x: Array) -> Array:
    """By Horner's rule; plain floats as coefficients keep the dtype of `x`."""
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


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
