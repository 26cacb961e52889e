"""Learning rate: linear up, linear down, never zero."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_export.errors import UsageError
from adapter_export.training.loop.settings import LoopSpec, Schedule
from adapter_export.training.loop.train_loop import rate_factor


def test_ten_steps_with_a_fifth_of_warm_up() -> None:
    found = [rate_factor(step, 10, 0.2) for step in range(10)]
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])


@given(st.integers(1, 500), st.floats(0, 1, exclude_max=True))
def test_it_stays_above_zero_and_rises_before_it_falls(total: int, warmup: float) -> None:
    found = [rate_factor(step, total, warmup) for step in range(total)]
    assert all(0 < factor <= 1 for factor in found)
    peak = found.index(max(found))
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("patience", 0),
        ("checkpoint_steps", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("clip", float("inf")),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("weight_decay", -1.0),
        ("seed", -1),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"`{name}`"):
        LoopSpec(**{name: value})


@pytest.mark.parametrize(
    ("rows", "epochs", "patience", "warmup"),
    [(10, 30, 15, 0.3), (130, 24, 12, 0.3), (360, 10, 5, 0.3), (720, 6, 3, 0.3), (5000, 4, 3, 0.1)],
)
def test_small_tables_get_enough_steps_and_time_to_anneal(rows: int, epochs: int, patience: int, warmup: float) -> None:
    loop = Schedule().loop(LoopSpec(), rows)
    assert (loop.epochs, loop.patience, loop.learning_rate, loop.warmup) == (epochs, patience, 1e-3, warmup)


def test_passed_values_win() -> None:
    loop = Schedule(epochs=12, learning_rate=0.002, patience=2, warmup=0.3).loop(LoopSpec(batch_size=8), 100)
    assert (loop.epochs, loop.patience, loop.learning_rate, loop.warmup) == (12, 2, 0.002, 0.3)
    assert Schedule(quick=True).loop(LoopSpec(), 100) == LoopSpec()
    assert Schedule(quick=True, epochs=2).loop(LoopSpec(), 100).epochs == 2
