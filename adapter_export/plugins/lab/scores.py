"""Metrics of judged rows with 95 % intervals (percentile bootstrap)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from adapter_export.graph.tasks import TASK_TYPES
from adapter_export.graph.tasks.metrics import RETRIEVALS, Floats, Indices, Judged
from adapter_export.tables import number_of

_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Score:
    """The value of a metric with its 95 % interval; null where it is undefined, such as a correlation of one row.

    Attributes:
        value: on all rows.
        low: the lower end of the interval.
        high: its upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return "–" if self.value is None else f"{self.value:.4f}"

    @property
    def interval(self) -> str:
        """Both ends, as tables show them."""
        return "–" if self.low is None or self.high is None else f"{self.low:.4f} to {self.high:.4f}"


@dataclass(frozen=True)
class Resampling:
    """Draws of units with replacement, from which intervals are computed.

    Attributes:
        count: the number of draws; 0 for no intervals.
        seed: of the random generator.
    """

    count: int = 1000
    seed: int = 0

    def draws(self, judged: Judged, units: Indices | None = None) -> Floats:
        """Return the metrics [draws, metrics] of resampled units; no draws of a single unit.

        One seed draws the same places from equally many units, so draws of two contestants are paired.
        """
        units = np.arange(judged.units) if units is None else units
        generator, count = np.random.default_rng(self.seed), self.count if len(units) > 1 else 0
        drawn = [judged.measure(generator.choice(units, len(units))) for _ in range(count)]
        return np.array(drawn, np.float64).reshape(count, len(judged.metrics))

    def description(self, task: str, metrics: Iterable[str]) -> str:
        """Return how intervals of the metrics of a task are computed, in words."""
        units = "groups" if TASK_TYPES[task].ranks else "rows"
        units = "anchors" if {metric.name for metric in RETRIEVALS} <= {*metrics} else units
        return f"percentile bootstrap over {units}, {number_of(self.count, 'draw')}, seed {self.seed}"


DEFAULT, NO_INTERVALS = Resampling(), Resampling(0)


def score(judged: Judged, resampling: Resampling = DEFAULT, units: Indices | None = None) -> dict[str, Score]:
    """Return the metrics over some units, or all of them, by name.

    The ends of an interval are the 2.5th and the 97.5th percentile of the draws (percentile bootstrap; Efron &
    Tibshirani 1993, §13.3), without draws in which the metric is undefined. A single unit has no interval.
    """
    units = np.arange(judged.units) if units is None else units
    return summarised(judged, resampling.draws(judged, units), units)


def summarised(judged: Judged, drawn: Floats, units: Indices | None = None) -> dict[str, Score]:
    """Return the metrics over some units, or all of them, by name, with the intervals of given draws."""
    ends = percentiles(drawn)
    values = judged.measure(np.arange(judged.units) if units is None else units)
    return {
        metric.name: Score(*map(_number, (value, *ends[:, at])))
        for at, (metric, value) in enumerate(zip(judged.metrics, values, strict=True))
    }


def percentiles(drawn: Floats) -> Floats:
    """Return both ends [2, metrics] of the 95 % interval; NaN where no draw is defined."""
    bounds = np.full((2, drawn.shape[1]), np.nan)
    known = ~np.isnan(drawn).all(0) & bool(len(drawn))
    if known.any():
        bounds[:, known] = np.nanpercentile(drawn[:, known], _PERCENTILES, axis=0)
    return bounds


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
