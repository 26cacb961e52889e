"""The error function for arrays, which NumPy lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    """2/√π·∫₀ˣ exp(−t²) dt, element by element; float64 within 1 ulp, and float32 stays float32."""
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
