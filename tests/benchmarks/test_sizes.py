"""Costs at published sizes: every step has a row, a killed step too, and the pages show the measured rows."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("sizes")


def measure(sizes: ModuleType, rows: Path, *options: str) -> dict[str, Any]:
    """Measure the tiny model, and return its rows by step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sizes.py", "--models=tiny", f"--rows={rows}", *options])
        sizes.main()
    documents = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    return {document["step"]: sizes.Row(**document) for document in documents}


STEPS = ("model", "capture", "import", "build fp32", "build int4-weights", "add", "verify", "check", "run fp32")
STEPS += ("genai build fp32", "genai run fp32")
"""A step of each kind; the other precisions differ in an argument."""


@pytest.mark.extended
def test_every_kind_of_step_of_a_tiny_model_has_a_complete_row(sizes: ModuleType, tmp_path: Path) -> None:
    rows = measure(sizes, tmp_path / "rows.jsonl", f"--folder={tmp_path}", f"--steps={','.join(STEPS)}")
    assert tuple(rows) == STEPS
    assert {row.step: row.last_line for row in rows.values() if row.failure} == {}
    for step, row in rows.items():
        assert (row.parameters, row.weights, row.adapters) == (106_816, 4 * 106_816, 1)
        assert row.processor_s > 0.1, step
        assert row.wall_s > 0.1, step
        assert 1e7 < row.anonymous < row.resident < 2e9, step
        assert (row.first_s is None) == ("run" not in step)
        if row.first_s is not None and row.per_s is not None:
            assert 0 < row.first_s < row.wall_s
            assert row.per_s > 1
    check_outputs(rows)


def check_outputs(rows: dict[str, Any]) -> None:
    builds = {step: row for step, row in rows.items() if row.base_bytes is not None}
    assert len(builds) == 4
    assert all(row.base_bytes < row.total_bytes for row in builds.values())
    bundles = [row for row in builds.values() if row.adapter_bytes]
    assert [set(row.adapter_bytes) for row in bundles] == [{"a0"}, {"a0"}, {"a0", "a1"}]
    for row in bundles:
        assert set(row.golden_bytes) == {"base", "shared", *row.adapter_bytes}
        assert all(row.golden_bytes[name] > 0 for name in ("base", *row.adapter_bytes))
        tensors = 4 * 3_584  # rank 8 at query and value of two layers
        assert all(tensors < size < 2 * tensors for size in row.adapter_bytes.values())
    assert builds["build int4-weights"].base_bytes < builds["build fp32"].base_bytes


@pytest.mark.extended
def test_killed_steps_are_recorded_and_stop_dependent_steps(sizes: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = measure(sizes, path, f"--folder={tmp_path}", "--steps=capture,import", "--limit-memory=0.02")
    assert {step: row.failure for step, row in rows.items()} == {
        "model": "more than 0.02 GB of memory",
        "capture": "needs `model`, which failed",
        "import": "needs `capture`, which failed",
    }
    assert rows["model"].anonymous > 2e7
    assert not (tmp_path / "tiny" / "model").exists()
    again = measure(sizes, path, f"--folder={tmp_path}", "--steps=model")
    assert again["model"].failure is None
    assert again["capture"] == rows["capture"]


_ALLOCATE = "held = b'1' * 300_000_000; import time; time.sleep(60)"
_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_ALLOCATE!r}])"


@pytest.mark.extended
@pytest.mark.parametrize(
    ("program", "failure", "last_line"),
    [
        ("print('first'); print('last')", None, "last"),
        (r"import sys; print('out'); sys.exit('\rhalf\rno such file')", "exit status 1", "no such file"),
        ("import os; os.kill(os.getpid(), 15)", "ended by SIGTERM", ""),
        ("print('begun', flush=True); import time; time.sleep(60)", "more than 4 s", "begun"),
        (_ALLOCATE, "more than 0.2 GB of memory", ""),
        (_CHILD, "more than 0.2 GB of memory", ""),
    ],
    ids=["success", "error", "signal", "time", "memory", "memory of a child"],
)  # fmt: skip
def test_limits_and_errors_are_results(
    sizes: ModuleType, tmp_path: Path, program: str, failure: str | None, last_line: str
) -> None:
    limits = sizes.Limits(seconds=4, bytes=2e8)
    spent = sizes.watch([sys.executable, "-c", program], limits, tmp_path / "log", sizes.ONE_THREAD)
    assert (spent.failure, spent.last_line) == (failure, last_line)
    assert spent.wall < 10


@pytest.fixture
def rows(sizes: ModuleType) -> list[Any]:
    """Rows of three steps of four models whose costs follow a law, but for one model."""
    weights = {"minilm": 0.1, "smol": 0.5, "bertl": 1.3, "llama56": 0.2}
    return [
        sizes.Row(
            model=model,
            step=step,
            date="2026-12-02",
            load=0.25,
            machine="A machine.",
            parameters=int(gigabytes * 2.5e8),
            weights=int(gigabytes * 1e9),
            adapters=8 if model == "llama56" else 1,
            processor_s=40 * gigabytes + 3 * (8 if model == "llama56" else 1),
            wall_s=70.0,
            resident=int(factor * 2e9 * gigabytes),
            anonymous=int(factor * 1e9 * gigabytes + 5e8),
        )
        for step, factor in {"capture": 1.0, "check": 3.0, "genai build fp32": 9.0}.items()
        for model, gigabytes in weights.items()
    ]


def test_size_laws_are_fitted_by_least_squares(sizes: ModuleType, rows: list[Any]) -> None:
    """Costs that follow a law return its coefficients; of four points, one 4 s too high shows in residuals."""
    from kit.size_law import memory_law, resident_law, time_law

    checks = [row for row in rows if row.step == "check"]
    memory, resident, time = memory_law(checks), resident_law(checks), time_law(checks)
    assert (memory.first, memory.second) == pytest.approx((3.0, 0.5))
    assert (resident.first, resident.second) == pytest.approx((6.0, 0.0), abs=1e-9)
    assert (time.first, time.second) == pytest.approx((160.0, 3.0))
    assert time.at(7.0, 1.0) == pytest.approx(1123.0)
    assert memory.largest == pytest.approx(0.0, abs=1e-9)
    off = [replace(row, processor_s=row.processor_s + 4) if row.model == "smol" else row for row in checks]
    law = time_law(off)
    assert 0 < law.residuals["smol"] == law.largest < 4
    at = [(row.parameters / 1e9, row.adapters) for row in off]
    for place in (0, 1):  # residuals of least squares are orthogonal to both quantities
        products = (law.residuals[row.model] * quantities[place] for row, quantities in zip(off, at, strict=True))
        assert sum(products) == pytest.approx(0.0, abs=1e-9)


def test_a_law_excludes_failed_steps_and_needs_three_models(sizes: ModuleType, rows: list[Any]) -> None:
    from kit.size_law import memory_law

    checks = [row for row in rows if row.step == "check"]
    failed = replace(checks[0], anonymous=0, failure="more than 20 GB of memory")
    law = memory_law([failed, *checks[1:]])
    assert set(law.measured) == {"smol", "bertl", "llama56"}
    assert (law.first, law.second) == pytest.approx((3.0, 0.5))
    assert memory_law([failed, *checks[1:3]]) is None


def test_the_page_names_the_step_that_would_have_to_change_first(sizes: ModuleType, rows: list[Any]) -> None:
    """With 28 GB of weights, `check` needs 3 × 28 + 0.5 GB; laws of GenAI are not considered."""
    page = sizes.page_tables(rows)
    assert "`check`, 84 GB or 3.0 times its weights, and the most processor time in `capture`, 19 minutes" in page
    assert "`check` would have to change first" in page
    assert "| `check` | 3.00 | 0.50 | 84.50 | 0.00 | +0.00 | +0.00 | +0.00 | +0.00 |" in page.replace("-0.00", "+0.00")
    failed = replace(rows[0], failure="exit status 3", last_line="no `w5` | w6")
    page = sizes.page_tables([failed, *rows[1:]])
    assert "| `capture` | failed |" in page
    assert "- `minilm`, `capture`: exit status 3; last line: `no 'w5' | w6`" in page
    assert "Fewer than 3 models are measured." in sizes.page_tables(rows[:2])


def test_a_row_replaces_the_row_of_its_model_and_step(sizes: ModuleType, rows: list[Any], tmp_path: Path) -> None:
    file = sizes.RowFile(tmp_path / "rows.jsonl")
    assert file.read() == []
    for row in reversed(rows):
        file.put(row)
    places = [row.place for row in file.read()]
    steps = ("capture", "check", "genai build fp32")
    assert places == [(model, step) for model in ("minilm", "llama56", "smol", "bertl") for step in steps]
    changed = replace(rows[0], processor_s=1.0, golden_bytes={"base": 5})
    file.put(changed)
    assert [row.place for row in file.read()] == places
    assert file.read()[0] == changed
    assert len(file.read()) == len(rows)


def test_the_pages_show_the_measured_rows(sizes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = {}
    for name in ("RESULTS", "PAGE"):
        text = getattr(sizes, name).read_text("utf-8")
        begin, end = sizes.MARKERS
        before, _, rest = text.partition(begin)
        copies[tmp_path / name] = text
        (tmp_path / name).write_text(f"{before}{begin}\nold\n{end}{rest.partition(end)[2]}", encoding="utf-8")
        monkeypatch.setattr(sizes, name, tmp_path / name)
    sizes.write(sizes.RowFile(sizes.ROWS).read())
    assert {path: path.read_text("utf-8") for path in copies} == copies
    (tmp_path / "PAGE").write_text("# no place for a table\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="has no lines"):
        sizes.write([])


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["build"], ["build fp32", "build int8", "build int8-weights", "build int4-weights"]),
        (["check", "capture"], ["capture", "check"]),
        (["genai run int4"], ["genai run int4"]),
        ([], []),
    ],
)
def test_steps_are_chosen_by_name_or_first_word(sizes: ModuleType, names: Sequence[str], steps: list[str]) -> None:
    from kit.size_steps import step_names

    assert sizes.chosen_steps(step_names(sizes.MODELS.values()), names) == steps


@pytest.mark.parametrize("option", ["--models=tiny,gpt9", "--steps=built"])
def test_unknown_names_are_refused(
    sizes: ModuleType, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sizes.py", option])
    with pytest.raises(SystemExit, match="2"):
        sizes.main()
    assert "unknown: " in capsys.readouterr().err
