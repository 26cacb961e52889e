"""Intervals of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`, excluding `high` if half open. NaN is in no interval."""

    low: float
    high: float = math.inf
    half_open: bool = False

    def __contains__(self, number: float) -> bool:
        return self.low <= number < self.high or (number == self.high and not self.half_open)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"at least {self.low:g}"
        return f"{self.low:g} to {'below ' if self.half_open else ''}{self.high:g}"
