"""Rows that a training record recognises: exactly of short files, by a sample of long ones, and never their text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from answering import write

from adapter_export.format.tabular.eval_data import DataOptions, EvalData
from adapter_export.format.tabular.labelled import MOST_DIGESTS, Columns, RememberedRows, row_digest
from adapter_export.graph.tasks import Task
from adapter_export.plugins.lab.seen_rows import SeenRows


def read(path: Path, texts: list[str], pair: str | None = None) -> EvalData:
    rows = [{"text": text, "label": "x", **({} if pair is None else {"pair": pair})} for text in texts]
    columns = Columns(pair=None if pair is None else "pair")
    return DataOptions(columns, None, False, None).read(write(path, rows), Task("single_label", labels=("x",)))


def source(data: EvalData) -> dict[str, Any]:
    digests = [row_digest(row, data.sha256) for row in data.rows]
    return {"sha256": data.sha256, "row_digests": RememberedRows.of(digests, data.sha256).to_json()}


def test_validation_rows_are_counted_apart_from_training_rows(tmp_path: Path) -> None:
    learnt = read(tmp_path / "a.jsonl", [f"text {at}" for at in range(20)])
    held = read(tmp_path / "b.jsonl", [f"other {at}" for at in range(10)])
    record = {"data": {"training": source(learnt), "validation": source(held)}}
    found = SeenRows.of(record, held, compared=False)
    assert found == SeenRows("validation", 10, 0, 10, False)
    (note,) = found.notes("tickets")
    assert note.startswith("these are validation rows of `tickets`")
    assert not found.is_training
    mixed = read(tmp_path / "c.jsonl", ["text 1", "other 1", "other 2", *(f"new {at}" for at in range(7))])
    found = SeenRows.of(record, mixed, compared=False)
    assert found == SeenRows(None, 10, 1, 2, False)
    assert [note[:7] for note in found.notes("tickets")] == ["1 of 10", "2 of 10"]
    assert found.is_training  # a tenth of the rows


def test_rows_of_a_long_file_are_estimated_by_a_sample(tmp_path: Path) -> None:
    """Look up 1,000 known rows of 4,000, about half of which are found, so σ is about 2000·√(.25·.75/2000) = 19."""
    learnt = read(tmp_path / "a.jsonl", [f"text {at}" for at in range(2 * MOST_DIGESTS)])
    record = {"data": {"training": source(learnt)}}
    assert len(json.dumps(record)) < 12_000
    texts = [f"text {at}" for at in range(1000)] + [f"new {at}" for at in range(3000)]
    found = SeenRows.of(record, read(tmp_path / "b.jsonl", texts), compared=False)
    assert found is not None
    assert found.estimated
    assert found.training == pytest.approx(1000, abs=4 * 2 * 19)
    assert next(found.notes("a")).startswith("about ")


def test_a_record_without_digests_knows_its_file_only(tmp_path: Path) -> None:
    data = read(tmp_path / "a.jsonl", ["one", "two"])
    same = SeenRows.of({"data": {"training": {"sha256": data.sha256}}}, data, compared=False)
    assert same == SeenRows("training", 2, None, None, False)
    assert "(" not in next(same.notes("a"))
    assert same.is_training
    assert SeenRows.of({}, data, compared=False) is None


@pytest.mark.parametrize("damage", [{"digests": "?"}, {"digests": 3}, {"salt": "zz"}, {"rows": "many"}])
def test_damaged_digests_are_no_digests(tmp_path: Path, damage: dict[str, object]) -> None:
    data = read(tmp_path / "a.jsonl", ["one", "two"])
    digests = {**source(data)["row_digests"], **damage}
    found = SeenRows.of({"data": {"training": {"row_digests": digests}}}, data, compared=False)
    assert found == SeenRows(None, 2, None, None, False)


def test_members_of_a_composition_bring_their_rows(tmp_path: Path) -> None:
    learnt = read(tmp_path / "a.jsonl", ["one", "two", "three"])
    record = {"composition": {"members": [{"name": "m"}, {"name": "n", "data": [{"training": source(learnt)}]}]}}
    found = SeenRows.of(record, read(tmp_path / "b.jsonl", ["two", "four"]), compared=False)
    assert found == SeenRows(None, 2, 1, None, False)


def test_texts_of_compared_pairs_are_looked_up_one_by_one(tmp_path: Path) -> None:
    learnt = read(tmp_path / "a.jsonl", ["one", "two"])
    record = {"data": {"training": source(learnt)}}
    pairs = read(tmp_path / "b.jsonl", ["one", "two"], pair="new")
    assert SeenRows.of(record, pairs, compared=False) == SeenRows(None, 2, 0, None, False)
    assert SeenRows.of(record, pairs, compared=True) == SeenRows(None, 2, 1, None, False)


def test_the_record_holds_no_text(tmp_path: Path) -> None:
    """Digests of one text differ with the file, so that no table of digests fits two adapters."""
    first, second = (read(tmp_path / f"{name}.jsonl", ["secret words", name]) for name in "ab")
    assert "secret" not in json.dumps(source(first))
    assert row_digest(first.rows[0], first.sha256) != row_digest(first.rows[0], second.sha256)
