"""Compare answers with golden ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PLACES = ("first_token", "last_token")
"""Whole numbers that must be equal."""


@dataclass(frozen=True)
class Fault:
    """A golden text or row with another result, and the difference."""

    name: str
    fault: str


def within(context: tuple[int, int], tokens: int) -> npt.NDArray[np.bool_]:
    """Return which tokens of a row may be the answer to a question."""
    places = np.arange(tokens)
    return (places >= context[0]) & (places < context[1])


def differs(found: Any, expected: Any, absolute: float, decided: bool, where: str = "") -> tuple[float, str | None]:
    """The largest deviation of a number as a part of the allowed one, infinite where more differs, and what."""
    if isinstance(expected, Mapping | list) and isinstance(found, Mapping | list) and where != "labels":
        own, wanted = [dict(each) if isinstance(each, Mapping) else dict(enumerate(each)) for each in (found, expected)]
        if set(own) != set(wanted):
            return (
                np.inf,
                f"`{where or 'answer'}` has {', '.join(map(str, own))}, expected {', '.join(map(str, wanted))}",
            )
        inner = [differs(own[k], wanted[k], absolute, decided, f"{where}.{k}" if where else str(k)) for k in wanted]
        return max([far for far, _ in inner], default=0.0), next((fault for _, fault in inner if fault), None)
    if isinstance(expected, int | float) and isinstance(found, int | float) and where not in PLACES:
        far = abs(found - expected)
        worst = np.inf if np.isnan(far) else far / absolute if far else 0.0
        fault = f"`{where}` found {found}, expected {expected}, allowed {absolute}"
        return float(worst), None if worst <= 1 else fault
    if decided and found != expected:
        return np.inf, f"`{where}` found {found}, expected {expected}"
    return 0.0, None
