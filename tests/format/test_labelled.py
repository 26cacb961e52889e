"""Rows of each task type: inputs read, and short messages for rejected ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapter_export.errors import DataError, UsageError
from adapter_export.format.tabular.labelled import Columns, labelled_rows, read_texts
from adapter_export.graph.tasks import ProblemType
from adapter_export.graph.tasks.types.span import GivenSpan

PAIR = Columns("q", "c", "a")


def read(folder: Path, problem: ProblemType, columns: Columns, *rows: dict[str, Any], **settings: bool) -> list[Any]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    found = labelled_rows(path, columns, problem, **settings)
    return [(row.text, row.pair, row.answer) for row in found.rows]


def of_table(folder: Path, problem: ProblemType, columns: Columns, table: str) -> list[Any]:
    path = folder / "rows.csv"
    path.write_text(table, encoding="utf-8")
    found = labelled_rows(path, columns, problem)
    return [(row.text, row.pair, row.answer) for row in found.rows]


@pytest.mark.parametrize(
    ("problem", "row", "found"),
    [
        ("single_label", {"q": "x", "c": "y", "a": "same"}, ("x", "y", "same")),
        ("multi_label", {"q": "x", "c": "y", "a": ["b", "a|b", 3]}, ("x", "y", {"b", "a|b", "3"})),
        ("multi_label", {"q": "x", "c": "y", "a": "b| a "}, ("x", "y", {"a", "b"})),
        ("multi_label", {"q": "x", "c": "y", "a": []}, ("x", "y", set())),
        ("multi_label", {"q": "x", "c": "y", "a": "|"}, ("x", "y", set())),
        ("regression", {"q": "x", "c": "y", "a": 3.5}, ("x", "y", (3.5,))),
        ("ranking", {"q": "x", "c": "y", "a": "1"}, ("x", "y", 1.0)),
        ("multiple_choice", {"q": "x", "c": ["y", "z"], "a": 1}, ("x", ("y", "z"), 1)),
        ("multiple_choice", {"q": "x", "c": ["2", "1"], "a": "1"}, ("x", ("2", "1"), 1)),
        ("multiple_choice", {"q": "x", "c": "y | z", "a": "z"}, ("x", ("y", "z"), 1)),
        ("span", {"q": "x", "c": "a b c", "a": "b"}, ("x", "a b c", (GivenSpan("b", 2),))),
        (
            "span",
            {"q": "x", "c": "a b a", "a": {"text": ["a", "b", "a"], "answer_start": [4, 2, 4]}},
            ("x", "a b a", (GivenSpan("a", 4), GivenSpan("b", 2))),
        ),
        (
            "span",
            {"q": "x", "c": "a b a", "a": [{"text": "a", "answer_start": 0}]},
            ("x", "a b a", (GivenSpan("a", 0),)),
        ),
    ],
)
def test_rows_of_each_task_type_are_read(problem: ProblemType, row: dict[str, Any], found: Any, tmp_path: Path) -> None:
    assert read(tmp_path, problem, PAIR, row) == [found]


def test_separated_cells_become_sets_choices_and_spans(tmp_path: Path) -> None:
    assert of_table(tmp_path, "multi_label", Columns(), "text,label\nx,a|b\ny,|\n") == [
        ("x", None, {"a", "b"}),
        ("y", None, set()),
    ]
    assert of_table(tmp_path, "multiple_choice", PAIR, "q,c,a\nx,y|z,z\n") == [("x", ("y", "z"), 1)]
    columns = Columns("q", "c", "a", start="s")
    assert of_table(tmp_path, "span", columns, "q,c,a,s\nx,a b a,a,4\n") == [("x", "a b a", (GivenSpan("a", 4),))]


@pytest.mark.parametrize(
    ("problem", "row", "words"),
    [
        ("multi_label", {"q": "x", "c": "y", "a": 3}, "holds no set of labels; found `3`"),
        ("multi_label", {"q": "x", "c": "y", "a": "a|a"}, "a label occurs twice in a set; found `a|a`"),
        ("multi_label", {"q": "x", "c": "y", "a": ["a", ""]}, "a set has an empty label"),
        ("multi_label", {"q": "x", "c": "y", "a": ""}, "1 row has no text or no label"),
        ("single_label", {"q": "x", "c": "", "a": "same"}, "1 row has no text or no label"),
        ("ranking", {"q": "x", "c": "y", "a": -0.5}, "is no relevance; found `-0.5`; expected a number from 0 to 1"),
        ("ranking", {"q": "x", "c": "y", "a": [0, 1]}, "is no relevance"),
        ("multiple_choice", {"q": "x", "c": ["y"], "a": 0}, "holds no choices"),
        ("multiple_choice", {"q": "x", "c": ["y", "y"], "a": 0}, "holds no choices"),
        ("multiple_choice", {"q": "x", "c": ["y", "z"], "a": 2}, "the answer is none of the choices; found `2`"),
        ("multiple_choice", {"q": "x", "c": ["y", "z"], "a": "1"}, "the answer is none of the choices; found `1`"),
        ("multiple_choice", {"q": "x", "c": ["y", "z"], "a": True}, "the answer is none of the choices"),
        ("span", {"q": "x", "c": "a b c", "a": "d"}, "the answer is not in its context; found `d`"),
        ("span", {"q": "x", "c": "a b a", "a": "a"}, "the answer is 2 times in its context; found `a`"),
        (
            "span",
            {"q": "x", "c": "a b c", "a": {"text": "b", "answer_start": 1}},
            "the answer is not in its context at its start; found `b` at `1`, where there is ` `",
        ),
        ("span", {"q": "x", "c": "a b c", "a": {"text": "b", "answer_start": -3}}, "found `b` at `-3`;"),
        ("span", {"q": "x", "c": "a b c", "a": {"text": ["b"], "answer_start": []}}, "contains no answer"),
        ("span", {"q": "x", "c": "a b c", "a": {"text": [], "answer_start": []}}, "1 row has no text or no label"),
    ],
)
def test_invalid_rows_are_refused_with_a_reason(
    problem: ProblemType, row: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, problem, PAIR, row)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("problem", "columns", "words"),
    [
        ("ranking", Columns(), "`ranking` reads pairs of texts. Name the column of the second texts: `pair`"),
        ("token", Columns(pair="c"), "`token` reads single texts, not pairs; found `c`"),
        ("single_label", Columns(start="s"), "only answers to questions have a `start`"),
    ],
)
def test_columns_that_do_not_suit_the_task_are_refused(
    problem: ProblemType, columns: Columns, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, problem, columns, {"text": "x", "label": "y"})
    assert words in str(caught.value)


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression", "span", "multiple_choice"])
def test_no_message_repeats_a_long_text(problem: ProblemType, tmp_path: Path) -> None:
    long = "word " * 50_000
    rows = [{"q": "x", "c": ["y", "z"] if problem == "multiple_choice" else long, "a": [long, long]}] * 3
    with pytest.raises(DataError) as caught:
        read(tmp_path, problem, PAIR, *rows)
    assert len(str(caught.value)) < 500


def test_incomplete_rows_may_be_left_out(tmp_path: Path) -> None:
    rows = [{"q": "x", "c": None, "a": "y"}, {"q": "x", "c": "z", "a": "y"}]
    assert read(tmp_path, "single_label", PAIR, *rows, skip_incomplete=True) == [("x", "z", "y")]


def test_unlabelled_texts_are_read_by_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"\xef\xbb\xbfq\tc\nx\ty\n\tz\n")
    assert read_texts(path, Columns("q", "c")) == ([("x", "y")], ())
    assert read_texts(path, Columns("c")) == ([("y", None), ("z", None)], ())
