"""Learning rate: linear up, linear down, never zero."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from heard import Heard
from hypothesis import given
from hypothesis import strategies as st

import adapter_export as ae
from adapter_export.errors import UsageError
from adapter_export.training.loop.settings import LoopSpec, Schedule
from adapter_export.training.loop.train_loop import rate_factor


def test_ten_steps_with_warm_up_match_values_by_hand() -> None:
    found = [rate_factor(step, 10, 0.2) for step in range(10)]
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])


@given(st.integers(1, 500), st.floats(0, 1, exclude_max=True))
def test_learning_rate_rises_then_falls_above_zero(total: int, warmup: float) -> None:
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
        ("max_minutes", 0.0),
        ("max_minutes", float("inf")),
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


def test_passed_values_override_the_schedule() -> None:
    loop = Schedule(epochs=12, learning_rate=0.002, patience=2, warmup=0.3).loop(LoopSpec(batch_size=8), 100)
    assert (loop.epochs, loop.patience, loop.learning_rate, loop.warmup) == (12, 2, 0.002, 0.3)
    assert Schedule(quick=True).loop(LoopSpec(), 100) == LoopSpec()
    assert Schedule(quick=True, epochs=2).loop(LoopSpec(), 100).epochs == 2


def test_a_limit_of_time_ends_training_and_keeps_the_best_epoch(text_folder: Path, tmp_path: Path) -> None:
    table, heard, limit = tmp_path / "train.tsv", Heard(), 0.03
    rows = [f"number {n} is {'good' if n % 2 else 'bad'}\t{n % 2}\n" for n in range(200)]
    table.write_text("text\tlabel\n" + "".join(rows), "utf-8")
    base, began = ae.open_base(text_folder / "model.pt"), time.monotonic()
    options = {"kind": "pfeiffer", "bottleneck": 2, "epochs": 100_000, "patience": 100_000, "max_minutes": limit}
    adapter = ae.train(base, table, name="a", reporter=heard, **options)
    record = adapter.training
    assert 1 <= len(record["history"]) < 100_000
    assert record["seconds"] < 60 * limit + 2
    assert time.monotonic() - began < 60
    assert any("and never more than 1.8 s" in step for step in heard.steps)
    (note,) = [note for note in heard.notes if "stopped by `max_minutes=0.03`" in note]
    assert note.endswith(f"epoch {record['best_epoch']} is kept")
    best = max(epoch["validation"]["accuracy"] for epoch in record["history"])
    assert record["validation"]["accuracy"] == best
    assert np.isfinite([epoch["training_loss"] for epoch in record["history"]]).all()
