"""Parquet tables through the one table engine, as pyarrow writes them."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from adapter_export.errors import DataError
from adapter_export.format.tabular.labelled import Columns, labelled_rows, read_texts
from adapter_export.format.tabular.language_tables import LanguageFiles, read_language_tables
from adapter_export.format.tabular.parquet_files import parquet_rows

ROWS = [{"text": f"text {at}", "label": at % 3 - 1, "other": at} for at in range(20)]


def write(path: Path, rows: list[dict[str, object]] = ROWS, metadata: object = None, **options: int) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pyarrow.parquet.write_table(table, path, **options)
    return path


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 1), (3, 4), (3, 17), (7, 14), (14, 20), (19, 20), (20, 20)])
def test_a_part_has_the_rows_of_the_whole(tmp_path: Path, start: int, end: int | None) -> None:
    path = write(tmp_path / "rows.parquet", row_group_size=7)
    assert list(parquet_rows(path, start, end, ["text", "label", "other"])) == ROWS[start:end]
    assert list(parquet_rows(path, start, end, ["unknown"])) == [{} for _ in ROWS[start:end]]


def test_labels_are_those_of_the_same_table_as_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.PARQUET")
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    read, same = (labelled_rows(one, Columns(), "single_label").rows for one in (path, lines))
    assert read == same
    assert [row.line for row in read] == list(range(1, 21))
    assert read_texts(path, Columns())[0] == [(row["text"], None) for row in ROWS]


def test_parquet_labels_use_the_class_names_of_datasets(tmp_path: Path) -> None:
    path, classes = tmp_path / "rows.pq", datasets.ClassLabel(names=["low", "high"])
    features = datasets.Features(
        text=datasets.Value("string"), label=classes, other=datasets.Value("int64"), tags=datasets.List(classes)
    )
    rows = [{**row, "tags": [0, 1, 1]} for row in ROWS]
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    found = labelled_rows(path, Columns(), "single_label", skip_incomplete=True)
    assert [row.answer for row in found.rows[:4]] == ["low", "high", "low", "high"]
    assert list(found.incomplete) == [1, 4, 7, 10, 13, 16, 19]
    assert found.rows[0].cells == {"text": "text 1", "label": "low", "other": 1, "tags": ["low", "high", "high"]}
    words = {"label": {"feature": [{"names": ["low", "high"], "_type": "ClassLabel"}], "_type": "Sequence"}}
    earlier = write(path, [{"text": "a b", "label": [0, 1]}], metadata={"info": {"features": words}})
    assert [row.answer for row in labelled_rows(earlier, Columns(), "token").rows] == [("low", "high")]
    for other in ({"info": [{"names": 3}]}, [], {"info": {"features": {"label": {"_type": "ClassLabel"}}}}):
        write(path, metadata=other)
        assert {row.answer for row in labelled_rows(path, Columns(), "single_label").rows} == {"-1", "0", "1"}


def test_language_model_tables_are_read_from_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}])
    found = read_language_tables(LanguageFiles(path, validation=0.5))
    assert found.texts[next(iter(found.texts))].texts == [("a", "b"), ("c", "d")]


def test_faults_of_parquet_tables_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet: there is no column `words`; found `text`, `label`, `other`"):
        labelled_rows(path, Columns("words"), "single_label")
    whole = path.read_bytes()
    for data in (b"", whole[:-20], b"PAR1", whole[:200] + bytes(200) + whole[400:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"rows\.parquet: cannot be read as Parquet"):
            labelled_rows(path, Columns(), "single_label")
    rows: list[dict[str, object]] = [{"text": "a", "label": {"x": 1}}, {"text": "b", "label": "c"}]
    with pytest.raises(DataError, match=r"rows\.parquet, line 1: a label is not a word or a number; found dict"):
        labelled_rows(write(path, [rows[0]]), Columns(), "single_label")
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(DataError, match=r"rows\.parquet: a column name occurs twice; found text"):
        labelled_rows(path, Columns(), "single_label")
