"""The error function beside the C library's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adapter_export.graph.numpy_lowering import erf


@pytest.mark.parametrize(
    ("low", "high"), [(-8, 8), (-1.2, 1.2), (0.999, 1.001), (-1e-3, 1e-3), (-1e-300, 1e-300), (5.8, 6.1)]
)
def test_float64_is_within_one_ulp(low: float, high: float) -> None:
    x = np.random.default_rng(0).uniform(low, high, 20_000)
    expected = np.array([math.erf(value) for value in x])
    assert (np.abs(erf(x) - expected) <= np.spacing(np.abs(expected))).all()


def test_float32_stays_float32() -> None:
    x = np.random.default_rng(0).uniform(-8, 8, 20_000).astype(np.float32)
    expected = np.array([math.erf(value) for value in x])
    found = erf(x)
    assert found.dtype == np.float32
    assert (np.abs(found - expected) <= 2 * np.spacing(np.abs(expected).astype(np.float32))).all()


@pytest.mark.parametrize("x", [0.0, -0.0, 5e-324, -5e-324, 1.0, -1.0, 6.0, 1e300, -1e300, math.inf, -math.inf])
def test_special_values_match_the_c_library(x: float) -> None:
    found = float(erf(np.array([x]))[0])
    assert found == pytest.approx(math.erf(x), rel=3e-16, abs=0)
    assert math.copysign(1, found) == math.copysign(1, x)


def test_nan_stays_nan() -> None:
    assert np.isnan(erf(np.array([np.nan]))).all()
