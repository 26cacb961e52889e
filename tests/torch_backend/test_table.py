"""Labelled texts from files: every form, and every fault by its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_export.errors import DataError, FileError
from adapter_export.torch_backend.train.task_files import LabelledTexts, read_table

ROWS = [("Good, they say", "pos"), ('He said "no"', "neg"), ("a\tb", "pos"), ("naïve — 日本", "neg")]


def read(path: Path, **settings: bool) -> LabelledTexts:
    return read_table(path, **settings)


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_rows(path: Path, rows: list[tuple[str, str]], *, delimiter: str = ",", end: str = "\r\n") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
        writer.writerows([("id", "text", "label"), *((number, *row) for number, row in enumerate(rows))])
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t"), ("tab", "\t")])
def test_separated_values(tmp_path: Path, suffix: str, delimiter: str, end: str) -> None:
    found = read(write_rows(tmp_path / f"rows.{suffix}", ROWS, delimiter=delimiter, end=end))
    assert list(zip(found.texts, found.labels, strict=True)) == ROWS


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"label": label, "text": text, "more": [1]}) for text, label in ROWS]
    found = read(written(tmp_path, "rows.jsonl", "\n\n".join(lines)))
    assert list(zip(found.texts, found.labels, strict=True)) == ROWS


@pytest.mark.parametrize(
    "content",
    ["text,label\na b,x\n", "text\tlabel\na b\tx\n", '{"text": "a b", "label": "x"}\n', "\ntext,label\na b,x"],
)
def test_the_first_line_tells_the_form_where_the_suffix_does_not(tmp_path: Path, content: str) -> None:
    assert read(written(tmp_path, "rows.txt", content)).texts == ("a b",)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert read(written(tmp_path, "rows.csv", b"\xef\xbb\xbftext,label\na,x\n")).labels == ("x",)


def test_a_quoted_cell_of_csv_may_hold_lines(tmp_path: Path) -> None:
    found = read(written(tmp_path, "rows.csv", 'text,label\n"one\ntwo",x\nthree,y\n'))
    assert found.texts == ("one\ntwo", "three")


def test_a_lone_quote_in_tsv_swallows_no_lines(tmp_path: Path) -> None:
    """The format has no quotes, so a reader of quotes would join lines until the next one."""
    found = read(written(tmp_path, "rows.tsv", 'text\tlabel\n"Good start\tx\nnext\ty\nend"\tx\n"a" b\ty\n'))
    assert found.texts == ('"Good start', "next", 'end"', '"a" b')


def test_other_line_separators_stay_in_the_text(tmp_path: Path) -> None:
    found = read(written(tmp_path, "rows.tsv", "text\tlabel\na\x0cb\u2028c\x85d\tx\n"))
    assert found.texts == ("a\x0cb\u2028c\x85d",)


def test_labels_are_words_without_the_space_around_them(tmp_path: Path) -> None:
    lines = '{"text": "a", "label": 1}\n{"text": "b", "label": " 1 "}\n{"text": "c", "label": true}\n'
    assert read(written(tmp_path, "rows.jsonl", lines)).labels == ("1", "1", "True")


def test_repeated_rows_are_left_out_and_contradictions_counted(tmp_path: Path) -> None:
    rows = [("a", "x"), ("a", "x"), ("b", "x"), ("b", "y"), ("a", "x")]
    found = read(write_rows(tmp_path / "rows.csv", rows))
    assert found == LabelledTexts(("a", "b", "b"), ("x", "x", "y"), 2, 0, 1)


INCOMPLETE = "text,label\na,x\n ,y\nc,\nd,NaN\ne,y\n"


def test_rows_without_text_or_label_are_named(tmp_path: Path) -> None:
    message = r"3 rows have no text or no label; found lines 3, 4, 5; .*`skip_incomplete=True`"
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, "rows.csv", INCOMPLETE))


def test_rows_without_text_or_label_may_be_left_out(tmp_path: Path) -> None:
    found = read(written(tmp_path, "rows.csv", INCOMPLETE), skip_incomplete=True)
    assert (found.texts, found.incomplete) == (("a", "e"), 3)


def test_missing_values_of_json_are_incomplete(tmp_path: Path) -> None:
    lines = '{"text": null, "label": "x"}\n{"text": "b", "label": NaN}\n{"text": 3, "label": "x"}\n'
    with pytest.raises(DataError, match="3 rows have no text or no label"):
        read(written(tmp_path, "rows.jsonl", lines))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "", "holds no rows"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", "words,label\na,x\n", r"line 2: there is no column `text`; found `words`, `label`"),
        ("a.csv", "text,label\na,x\nb,c,x\n", r"line 3: a row has a wrong number of cells; found 3; expected 2"),
        ("a.csv", "text;label\na;x\n", r"line 1: the cells are not separated by commas or tabs; found `text;label`"),
        ("a.tsv", "text\tlabel\na\n", r"line 2: a row has a wrong number of cells"),
        ("a.csv", "text,text,label\na,b,x\n", r"line 1: a column name occurs twice; found text"),
        ("a.csv", 'text,label\n"a"b,x\n', r"line 2: is not csv"),
        ("a.csv", 'text,label\na,x\n"never closed,x\n', r"line 3: is not csv"),
        ("a.csv", b"text,label\nok,x\ncaf\xe9,x\n", r"line 3: is not UTF-8"),
        ("a.csv", "text,label\na,x\n".encode("utf-16"), r"line 1: is not UTF-8"),
        ("a.csv", b"PAR1" + bytes(20), r"is no text; found a Parquet file"),
        ("a.csv", b"PK\x03\x04" + bytes(20), r"is no text; found a zip file"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": \n', r"line 2: is not JSON"),
        ("a.jsonl", '["a", "x"]\n', r"line 1: is not a JSON object; found list"),
        ("a.jsonl", '{"text": "a", "label": ["x"]}\n', r"line 1: a label is not a word or a number; found list"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "a"}\n', r"line 2: there is no column `label`"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(written(tmp_path, name, content))


def test_only_incomplete_rows_are_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row has both"):
        read(written(tmp_path, "a.csv", "text,label\n,x\n"), skip_incomplete=True)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is not there"):
        read(tmp_path / "none.csv")


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(str.strip)
WORDS = st.text(st.characters(categories=["L"], codec="utf-8"), min_size=1).filter(lambda word: word.lower() != "nan")


@given(st.lists(st.tuples(CELLS, WORDS), min_size=1, unique=True))
def test_what_a_csv_writer_wrote_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    found = read(write_rows(tmp_path_factory.mktemp("rows") / "rows.csv", rows))
    assert list(zip(found.texts, found.labels, strict=True)) == rows
