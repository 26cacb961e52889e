"""The allowed deviation: how large it is, what it grows with, and what it says of itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from adapter_export.errors import UsageError
from adapter_export.graph.kinds import BottleneckOptions, bottleneck, classification_head
from adapter_export.reference.budget import ACCUMULATION, ROUNDING, budget, graph_budget

MINILM = {"inner": 1536, "depth": 36}
MINILM_DEVIATION = 2.2e-6
"""Measured once in units of the scale: torch float32 against float64, a random adapter of std 0.2 at every site."""


@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
def test_minilm_is_held_to_1e_5_of_its_scale(scale: float) -> None:
    allowed = budget("float32", scale=scale, **MINILM).absolute
    assert 2 * MINILM_DEVIATION * scale < allowed <= 1e-5 * max(1.0, scale)


def test_it_is_the_formula() -> None:
    epsilon = float(np.finfo(np.float32).eps)
    expected = 3.0 * math.sqrt(8) * (ROUNDING * epsilon + ACCUMULATION * math.sqrt(100) * epsilon)
    assert budget("float32", inner=100, depth=8, scale=3.0).absolute == pytest.approx(expected, rel=1e-12)


def test_half_precision_adds_up_in_single() -> None:
    half = budget("float16", inner=1024, depth=1, scale=1.0).absolute
    assert half == pytest.approx(ROUNDING * 2**-10 + ACCUMULATION * 32 * 2**-23, rel=1e-12)


def test_nothing_is_allowed_where_everything_is_zero() -> None:
    assert budget("float32", inner=64, depth=2, scale=0.0).absolute == 0


def test_the_reason_gives_every_number() -> None:
    found = budget("float32", scale=2.5, **MINILM)
    assert found.reason == (
        "2.5e-05 = scale 2.5 · √36 products · (3 roundings in float32 + 0.28·√1536 terms added in float32)"
    )


@pytest.mark.parametrize(
    "changes",
    [{"inner": 0}, {"depth": 0}, {"scale": -1.0}, {"scale": math.nan}, {"scale": math.inf}, {"dtype": "int8"}],
)
def test_numbers_without_a_budget_are_refused(changes: dict[str, Any]) -> None:
    numbers = {"dtype": "float32", "inner": 1, "depth": 1, "scale": 1.0, **changes}
    with pytest.raises(UsageError, match="no budget for"):
        budget(numbers.pop("dtype"), **numbers)


def test_a_graph_counts_its_products_and_norms() -> None:
    widths = {"d": 384, "b": 64}
    plain = bottleneck("h", BottleneckOptions())
    norms = bottleneck("h", BottleneckOptions(norm_before=True, norm_after=True))
    assert graph_budget("float32", plain, widths, scale=1.0) == budget("float32", inner=384, depth=2, scale=1.0)
    assert graph_budget("float32", norms, widths, scale=1.0) == budget("float32", inner=384, depth=4, scale=1.0)


def test_pooling_adds_up_tokens() -> None:
    found = graph_budget("float32", classification_head(), {"d": 8, "classes": 2}, scale=1.0, tokens=500)
    assert found == budget("float32", inner=500, depth=2, scale=1.0)
