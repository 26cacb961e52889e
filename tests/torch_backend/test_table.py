"""Labelled texts from files: every format, and every fault with its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_export.errors import DataError, FileError, UsageError
from adapter_export.format.tabular.labelled import Columns, labelled_rows
from adapter_export.format.tabular.table_files import TableFormat
from adapter_export.format.tabular.training_tables import LabelledTexts, TaskFiles, read_tables
from adapter_export.graph.tasks import TASK_TYPES

ROWS = [("Good, they say", "pos"), ('He said "no"', "neg"), ("a\tb", "pos"), ("naïve — 日本", "neg")]


def read(path: Path, form: TableFormat | None = None, **settings: bool) -> LabelledTexts:
    columns = Columns() if form is None else Columns(form=form)
    return LabelledTexts.of(labelled_rows(path, columns, "single_label", **settings), TASK_TYPES["single_label"])


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
def test_csv_and_tsv_files_are_read(tmp_path: Path, suffix: str, delimiter: str, end: str) -> None:
    found = read(write_rows(tmp_path / f"rows.{suffix}", ROWS, delimiter=delimiter, end=end))
    assert list(zip(found.texts, found.labels, strict=True)) == ROWS


def test_json_lines_are_read(tmp_path: Path) -> None:
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
    """The format has no quotes: a reader that supports quotes would join lines until the next one."""
    found = read(written(tmp_path, "rows.tsv", 'text\tlabel\n"Good start\tx\nnext\ty\nend"\tx\n"a" b\ty\n'))
    assert found.texts == ('"Good start', "next", 'end"', '"a" b')


def test_other_line_separators_stay_in_the_text(tmp_path: Path) -> None:
    found = read(written(tmp_path, "rows.tsv", "text\tlabel\na\x0cb\u2028c\x85d\tx\n"))
    assert found.texts == ("a\x0cb\u2028c\x85d",)


def test_labels_are_stripped_of_surrounding_space(tmp_path: Path) -> None:
    lines = '{"text": "a", "label": 1}\n{"text": "b", "label": " 1 "}\n{"text": "c", "label": true}\n'
    assert read(written(tmp_path, "rows.jsonl", lines)).labels == ("1", "1", "True")


def test_repeated_rows_are_left_out_and_contradictions_counted(tmp_path: Path) -> None:
    rows = [("a", "x"), ("a", "x"), ("b", "x"), ("b", "y"), ("a", "x")]
    found = read(write_rows(tmp_path / "rows.csv", rows))
    assert found == LabelledTexts(("a", "b", "b"), ("x", "x", "y"), (2, 4, 5), repeated=(3, 6), contradicting=(5,))


INCOMPLETE = "text,label\na,x\n ,y\nc,\nd,NaN\ne,y\n"


def test_rows_without_text_or_label_are_named(tmp_path: Path) -> None:
    message = r"3 rows have no text or no label; found lines 3, 4, 5; .*`skip_incomplete=True`"
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, "rows.csv", INCOMPLETE))


def test_rows_without_text_or_label_may_be_left_out(tmp_path: Path) -> None:
    found = read(written(tmp_path, "rows.csv", INCOMPLETE), skip_incomplete=True)
    assert (found.texts, found.incomplete) == (("a", "e"), (3, 4, 5))


def test_missing_values_of_json_are_incomplete(tmp_path: Path) -> None:
    lines = '{"text": null, "label": "x"}\n{"text": "b", "label": NaN}\n{"text": 3, "label": "x"}\n'
    with pytest.raises(DataError, match="3 rows have no text or no label"):
        read(written(tmp_path, "rows.jsonl", lines))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "", "contains no rows"),
        ("a.csv", "text,label\n", "contains no rows"),
        ("a.csv", "words,label\na,x\n", r"line 1: there is no column `text`; found `words`, `label`"),
        ("a.csv", "Text,label\na,x\n", r"Did you mean `Text`\? If not, name the columns with `text` and `label`\."),
        ("a.csv", "text,label\na,x\nb,c,x\n", r"line 3: a row has a wrong number of cells; found 3; expected 2"),
        ("a.tsv", "text\tlabel\na\n", r"line 2: a row has a wrong number of cells"),
        ("a.csv", "text,text,label\na,b,x\n", r"line 1: a column name occurs twice; found text"),
        ("a.csv", 'text,label\n"a"b,x\n', r"line 2: is not csv"),
        ("a.csv", 'text,label\na,x\n"never closed,x\n', r"line 3: is not csv"),
        ("a.csv", b"text,label\nok,x\ncaf\x81,x\n", r"line 3: is not UTF-8; found the bytes `81 2c 78 0a`"),
        ("a.csv", "text,label\nna\u00efve,x\n".encode() + b"caf\xe9,x\n", r"line 3: is not UTF-8.*`encoding`"),
        ("a.csv", "text,label\nдобрый день,x\n".encode("cp1251"), r"line 2: is not UTF-8"),
        ("a.csv", b"PAR1" + bytes(20), r"is not a text; found a Parquet file"),
        ("a.csv", b"PK\x03\x04" + bytes(20), r"is not a text; found a zip file"),
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


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        read(tmp_path / "none.csv")


SHOP = "text;label\r\nCafé, très bon;bon\r\n„Überfüllt“;schlecht\r\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("mark", ["", "sep=;\r\n"])
def test_tables_saved_by_excel_are_read_with_notes(tmp_path: Path, mark: str, encoding: str) -> None:
    found = read(written(tmp_path, "shop.csv", (mark + SHOP).encode(encoding)))
    assert (found.texts, found.labels) == (("Café, très bon", "„Überfüllt“"), ("bon", "schlecht"))
    assert found.lines == ((3, 4) if mark else (2, 3))
    assert any("`;` between cells" in note for note in found.notes)
    names = {"cp1252": "Windows-1252 (`cp1252`), as it is not UTF-8; `Café` is in line", "utf-16": "UTF-16"}
    said = [note for note in found.notes if "was read as" in note]
    assert [names[encoding] in note for note in said] == ([True] if encoding in names else [])


@pytest.mark.parametrize(
    ("name", "content", "notes"),
    [
        ("a.csv", "text,label\na;b,x\n", 0),
        ("a.csv", "text\tlabel\na, b\tx\n", 1),
        ("a.csv", 'text,label\n"a;b",x\n"c;d;e",y\n', 0),
        ("a.csv", '"text, raw";text;label\n"a, b";c;x\n', 1),
        ("a.tsv", "text\tlabel\na;b,c\tx\n", 0),
        ("a.tsv", "text;label\na;x\n", 1),
        ("a.txt", "text|label\na|x\n", 0),
        ("a.csv", f"text;label\n{'long, ' * 50_000};x\n", 1),
    ],
)
def test_the_delimiter_is_that_of_all_rows(tmp_path: Path, name: str, content: str, notes: int) -> None:
    found = read(written(tmp_path, name, content))
    assert found.labels[0] == "x"
    assert len(found.notes) == notes


def test_a_named_delimiter_and_encoding_are_taken_without_a_note(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text|label\nдобрый, день|x\n".encode("cp1251"))
    found = read(path, TableFormat("|", "cp1251"))
    assert (found.texts, found.notes) == (("добрый, день",), ())
    with pytest.raises(DataError, match=r"line 2: is not ASCII; found the bytes"):
        read(path, TableFormat("|", "ascii"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoding": "latin-nine"}, "unknown encoding; found `latin-nine`"),
        ({"encoding": "base64"}, "unknown encoding; found `base64`"),
        ({"delimiter": ";;"}, "is not a delimiter; found `;;`"),
        ({"delimiter": '"'}, "is not a delimiter"),
    ],
)
def test_unknown_delimiters_and_encodings_are_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TableFormat(**options)


@pytest.mark.parametrize(
    "blank", ["\u200b", "\ufeff\u200b", "\xa0 ", "\u2060\u00ad", "\u3164", "\u2800", "\u200d\ufe0f"]
)
def test_a_text_of_invisible_signs_is_an_empty_text(tmp_path: Path, blank: str) -> None:
    rows = [("a", "x"), (blank, "y"), ("b", blank), ("c", "y")]
    with pytest.raises(DataError, match=r"2 rows have no text or no label; found lines 3, 4;"):
        read(write_rows(tmp_path / "rows.csv", rows))


def test_invisible_signs_around_names_and_labels_make_no_others(tmp_path: Path) -> None:
    found = read(
        written(tmp_path, "rows.csv", "text\u200b,\xa0label\na,x\u200b\nb,\ufeffx\nc,\U0001f3f4\U000e0067\U000e007f\n")
    )
    assert found.labels == ("x", "x", "\U0001f3f4\U000e0067\U000e007f")


FAULTY = """text,label
a,x
b,x,more
,x
c,y
d,
e,rare
f
g,y
"""


def test_all_faults_of_a_table_are_named_in_one_run(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", FAULTY)
    with pytest.raises(DataError) as caught:
        read_tables(TaskFiles(path))
    said = str(caught.value)
    assert said.startswith(f"{path}: 4 faults:\n")
    assert (
        "\n  lines 3, 8: a row has a wrong number of cells; found 3, 1; expected 2 (text, label). Quote cells" in said
    )
    assert "\n  2 rows have no text or no label; found lines 4, 6; expected all of `text`, `label`" in said
    assert "Complete these rows, or give `skip_incomplete=True` to leave them out." in said
    assert "\n  lines 2, 7: a class has one row only" in said
    assert "found `rare`, `x`; expected at least two rows of each class. Add rows of that class" in said


def test_the_faults_of_all_files_are_named_in_one_run(tmp_path: Path) -> None:
    learn = written(tmp_path, "learn.csv", "text,label\na,x\nb,y\n")
    validate = written(tmp_path, "validate.csv", "text,label\na,x\nb,z\nc,z\nd\n")
    test = written(tmp_path, "test.csv", "text,kind\na,x\n")
    with pytest.raises(DataError) as caught:
        read_tables(TaskFiles(learn, validate, test))
    said = str(caught.value)
    assert f"{validate}, {test}: 4 faults:" in said
    assert "validate.csv, lines 3, 4: contains unknown labels; found `z`; expected `x`, `y`. Correct the label" in said
    assert "validate.csv, line 5: a row has a wrong number of cells" in said
    assert "test.csv, line 1: there is no column `label`; found `text`, `kind`" in said


def test_a_message_names_some_of_many_faults_and_counts_all(tmp_path: Path) -> None:
    lines = [json.dumps({f"column {place}": ""}) for place in range(40)]
    with pytest.raises(DataError) as caught:
        read(written(tmp_path, "rows.jsonl", "\n".join([*lines, *["{"] * 500])))
    said = str(caught.value)
    assert "540 faults:" in said
    assert "lines 41, 42, 43, 44, 45, … (500 in all): is not JSON" in said
    assert len(said) < 2100


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).map("{}a".format)
WORDS = st.text(st.characters(categories=["L"], codec="utf-8"), min_size=1).filter(lambda word: word.lower() != "nan")


@given(st.lists(st.tuples(CELLS, WORDS), min_size=1, unique=True))
def test_tables_of_a_csv_writer_are_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    found = read(write_rows(tmp_path_factory.mktemp("rows") / "rows.csv", rows))
    assert list(zip(found.texts, found.labels, strict=True)) == rows
