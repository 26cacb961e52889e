"""Texts to run on: from the command line, from lines, or from a table whose rows may name their adapters."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter_export.errors import DataError, UsageError
from adapter_export.format.files import read_bytes
from adapter_export.format.tables import Row, check_columns, read_rows

BASE = "-"
"""The base alone, where an adapter could be named."""

_LINES = (".txt", ".text")


@dataclass(frozen=True)
class Text:
    """A text.

    Attributes:
        text: the text.
        where: its place, for messages.
        adapter: the adapter that its row names; none is the base, or that there is no such column.
    """

    text: str
    where: str
    adapter: str | None = None


def given_texts(texts: Sequence[str]) -> list[Text]:
    """The texts of the command line, or else each line of stdin that is not empty.

    Raises:
        UsageError: there is nothing.
    """
    if texts:
        return [Text(text, f"text {index}") for index, text in enumerate(texts)]
    if sys.stdin.isatty():
        raise UsageError("there is nothing to run on", fix="give `--text`, `--data`, `--arrays`, or lines on stdin")
    found = list(_of_lines(sys.stdin.read(), "stdin"))
    if not found:
        raise UsageError(
            "there is nothing to run on", found="no lines on stdin", fix="give `--text`, `--data` or `--arrays`"
        )
    return found


def read_table_texts(path: Path, column: str, adapter_column: str | None) -> list[Text]:
    """The texts of a file, in its order: each line of a `.txt` file, or a column of a csv, tsv or jsonl table.

    Args:
        path: the file, in UTF-8.
        column: the column of the texts.
        adapter_column: the column that names the adapter of each row; an empty cell and `-` are the base.

    Raises:
        DataError: it cannot be read, a line is broken, a column is missing, a row has no text, or there are none.
        FileError: a `.txt` file cannot be read.
        UsageError: a `.txt` file has no columns.
    """
    if path.suffix.lower() in _LINES:
        if adapter_column is not None:
            raise UsageError("a file of lines has no columns", where=path, fix="give a csv, tsv or jsonl table")
        found = list(_of_lines(_decoded(path), str(path)))
    else:
        found = [_of_row(row, path, column, adapter_column) for row in read_rows(path)]
    if not found:
        raise DataError("holds no texts", where=path, expected="one text a line, or a table with a text in each row")
    return found


def _of_lines(text: str, where: str) -> Iterator[Text]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Text(line.rstrip("\r"), f"{where}, line {number}")


def _decoded(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            "is not UTF-8", where=f"{path}, line {line}", found=error.reason, fix="save the file as UTF-8"
        ) from error


def _of_row(row: Row, path: Path, column: str, adapter_column: str | None) -> Text:
    number, cells = row
    where = f"{path}, line {number}"
    wanted = (column,) if adapter_column is None else (column, adapter_column)
    check_columns(cells, wanted, where, "name the columns with `--text-column` and `--adapter-column`")
    text = cells[column]
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            "has no text",
            where=where,
            found=f"`{text}` in the column `{column}`",
            fix="give it one, or leave the row out",
        )
    return Text(text, where, None if adapter_column is None else _adapter(cells[adapter_column], where))


def _adapter(cell: object, where: str) -> str | None:
    if cell is None or cell in ("", BASE):
        return None
    if not isinstance(cell, str):
        raise DataError(
            "names no adapter", where=where, found=f"`{cell}`", expected=f"a name, or `{BASE}` for the base"
        )
    return cell.strip()
