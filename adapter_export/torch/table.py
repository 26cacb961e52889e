"""Labelled texts out of csv, tsv and jsonl files, read strictly: a row is understood, or named with its line."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_export.errors import DataError
from adapter_export.format.tables import check_columns, read_rows
from adapter_export.graph.tasks import DEFAULT_TASK, Task
from adapter_export.torch.cells import pair
from adapter_export.torch.cells import text as text_cell

_LINES_NAMED = 5


@dataclass(frozen=True)
class LabelledTexts:
    """The rows of a file.

    Attributes:
        texts: one text per row, or its words.
        labels: the label of each; the labels of its words; or its numbers.
        repeated: how many rows were left out because they repeat another one, text and label.
        incomplete: how many rows were left out because they have no text or no label.
        contradicting: how many texts occur with more than one label; their rows are kept.
    """

    texts: tuple[Any, ...]
    labels: tuple[Any, ...]
    repeated: int
    incomplete: int
    contradicting: int


def read_table(
    path: Path, text: str, label: str, *, task: Task = DEFAULT_TASK, skip_incomplete: bool = False
) -> LabelledTexts:
    """Read labelled texts; a row that repeats another one is left out, so that no split can hold both.

    Args:
        path: a csv, tsv or jsonl file in UTF-8, told apart by its suffix or else by its first line.
        text: the column that holds the texts.
        label: the column that holds the labels, or what else the task learns.
        task: what the columns mean: a text and its label, words and their labels, or a text and its numbers.
        skip_incomplete: leave rows without text or label out, instead of refusing the file.

    Raises:
        DataError: the file cannot be read, a line is broken, a column is missing, or rows are incomplete.
    """
    rows = list(read_rows(path))
    if not rows:
        raise DataError("holds no rows", where=path, expected="a line with the column names, then one row a line")
    for line, cells in rows:
        check_columns(cells, (text, label), f"{path}, line {line}")
    pairs = [(line, *pair(task, cells[text], cells[label], f"{path}, line {line}")) for line, cells in rows]
    incomplete = [line for line, *said in pairs if None in said]
    if incomplete and not skip_incomplete:
        _refuse_incomplete(incomplete, path)
    complete = [(words, name) for _, words, name in pairs if words is not None and name is not None]
    if not complete:
        raise DataError("no row has both a text and a label", where=path)
    return _without_repeats(complete, len(incomplete))


def read_texts(path: Path, text: str) -> tuple[str, ...]:
    """Read the texts of a table, labelled or not; rows without a text are left out.

    Raises:
        DataError: the file cannot be read, a line is broken, the column is missing, or no row has a text.
    """
    found = []
    for line, cells in read_rows(path):
        check_columns(cells, (text,), f"{path}, line {line}")
        found.append(text_cell(cells[text], f"{path}, line {line}"))
    texts = tuple(words for words in found if words is not None)
    if not texts:
        raise DataError("no row has a text", where=path, expected=f"texts in the column `{text}`")
    return texts


def _without_repeats(pairs: list[tuple[Any, Any]], incomplete: int) -> LabelledTexts:
    unique = tuple(dict.fromkeys(pairs))
    contradicting = sum(count > 1 for count in Counter(text for text, _ in unique).values())
    texts, labels = zip(*unique, strict=True)
    return LabelledTexts(texts, labels, len(pairs) - len(unique), incomplete, contradicting)


def _refuse_incomplete(lines: list[int], path: Path) -> None:
    named = ", ".join(map(str, lines[:_LINES_NAMED])) + (", …" if len(lines) > _LINES_NAMED else "")
    raise DataError(
        f"{len(lines)} rows have no text or no label",
        where=path,
        found=f"lines {named}",
        expected="both in every row",
        fix="complete these rows, or give `--skip-incomplete` to leave them out",
    )
