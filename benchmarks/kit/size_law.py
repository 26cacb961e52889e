"""Laws of cost, fitted to the measured rows of a step by least squares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kit.size_rows import Row

FEWEST = 3
"""Measured models from which on a law of two coefficients has residuals."""


@dataclass(frozen=True)
class Law:
    """A cost as a weighted sum of two quantities.

    Attributes:
        first: coefficient of the first quantity.
        second: coefficient of the second quantity.
        residuals: measured cost less that of the law, by model.
        measured: measured cost, by model.
    """

    first: float
    second: float
    residuals: Mapping[str, float]
    measured: Mapping[str, float]

    @property
    def largest(self) -> float:
        """Return the largest residual without its sign."""
        return max(map(abs, self.residuals.values()))

    def at(self, first: float, second: float) -> float:
        """Return the cost at two quantities."""
        return self.first * first + self.second * second


def memory_law(rows: Sequence[Row]) -> Law | None:
    """Fit anonymous GB = a × GB of float32 weights + b; `None` for fewer than three models."""
    return _fit({row.model: (row.weights / 1e9, 1.0, row.anonymous / 1e9) for row in rows if row.failure is None})


def resident_law(rows: Sequence[Row]) -> Law | None:
    """Fit resident GB, mapped files included, = a × GB of float32 weights + b."""
    return _fit({row.model: (row.weights / 1e9, 1.0, row.resident / 1e9) for row in rows if row.failure is None})


def time_law(rows: Sequence[Row]) -> Law | None:
    """Fit seconds of processor time = c × billions of parameters + d × adapters."""
    return _fit({row.model: (row.parameters / 1e9, row.adapters, row.processor_s) for row in rows if not row.failure})


def _fit(points: Mapping[str, tuple[float, float, float]]) -> Law | None:
    """Fit a law to first quantity, second quantity and cost of each model."""
    if len(points) < FEWEST:
        return None
    table = np.array(list(points.values()), dtype=np.float64)
    quantities, costs = table[:, :2], table[:, 2]
    (first, second), *_ = np.linalg.lstsq(quantities, costs)
    residuals = costs - quantities @ (first, second)
    by_model = dict(zip(points, map(float, residuals), strict=True))
    return Law(float(first), float(second), by_model, dict(zip(points, map(float, costs), strict=True)))
