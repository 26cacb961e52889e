"""Rows of tables and lines of text files, as questions to a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_export.errors import DataError, UsageError
from adapter_export.format.tabular.parquet_files import PARQUET
from adapter_export.format.tabular.table_files import (
    DETECTED,
    TableFormat,
    TextTable,
    check_columns,
    open_table,
    text_lines,
)
from adapter_export.graph.tasks.asked import Row
from adapter_export.graph.tasks.cells import choices, short
from adapter_export.safe_io.regular_files import read_stream
from adapter_export.text import Pair
from adapter_export.words import argument, joined

JSON_LINES, LINES = (".jsonl", ".ndjson"), (".txt", ".text")
SUFFIXES = (*PARQUET, *JSON_LINES, ".csv", ".tsv", ".tab", *LINES)

_FLAGS = [argument(name) for name in ("text_column", "pair_column", "adapter_column")]
_NAME_COLUMNS = "name the columns with " + joined(_FLAGS[:-1]) + " and " + _FLAGS[-1]

_BASE = "-"
"""Cell that names the base, as `base` does."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns with texts, second texts of pairs, and adapters.

    Attributes:
        form: delimiter and encoding of the file.
    """

    text_column: str = "text"
    pair_column: str | None = None
    adapter_column: str | None = None
    form: TableFormat = DETECTED

    @property
    def names(self) -> list[str]:
        """The columns that a row must have."""
        return [name for name in (self.text_column, self.pair_column, self.adapter_column) if name is not None]

    def row(self, cells: Mapping[str, Any], where: str) -> Row:
        """Return a row of a table; an empty text is allowed.

        Raises:
            DataError: a column is missing, or a cell contains no text or no name of an adapter.
        """
        check_columns(list(cells), self.names, where, _NAME_COLUMNS)
        text = cells[self.text_column]
        if not isinstance(text, str):
            raise _no_text("has no text", text, self.text_column, where)
        adapter = None if self.adapter_column is None else _adapter_of(cells[self.adapter_column], where)
        question: Any = text
        if self.pair_column is not None:
            second = cells[self.pair_column]
            seconds = choices(second, where) if isinstance(second, list) else second
            if not isinstance(seconds, str | tuple):
                raise _no_text("has no second text", second, self.pair_column, where)
            question = Pair(text, seconds) if isinstance(seconds, str) else [Pair(text, choice) for choice in seconds]
        return Row(question, adapter, where=where)


def _adapter_of(cell: object, where: str) -> str | None:
    """Return the name in a cell, `None` for the base; DataError for an empty cell, which may be a mistake."""
    if isinstance(cell, str) and cell.strip():
        return None if cell.strip() == _BASE else cell.strip()
    raise DataError(
        "names no adapter",
        where=where,
        found="an empty cell" if cell is None or isinstance(cell, str) else f"`{short(cell)}`",
        expected="the name of an adapter, or `base`",
        fix="write `base` to use the base",
    )


def _no_text(what: str, cell: object, column: str, where: str) -> DataError:
    shown = f"`{short(cell)}` in the column `{column}`"
    return DataError(what, where=where, found=shown, fix="add a text, or remove the row")


@dataclass(frozen=True)
class FileRows:
    """The rows of a file.

    Attributes:
        rows: the rows; after the last one, a DataError names all malformed rows.
        notes: on the detected format.
    """

    rows: Iterator[Row]
    notes: tuple[str, ...] = ()


def file_rows(path: Path, columns: Columns) -> FileRows:
    """Return the rows of a csv, tsv, JSON lines or Parquet file, or the lines of a `.txt` file.

    Each line is a row, including empty ones, so that answers match lines; in tables, an empty line before the last row
    is an error.

    Raises:
        UsageError: columns were given for a file of lines.
        FileError: the file cannot be read.
        DataError: it is not a table.
        MissingExtraError: pyarrow is not installed.
    """
    if path.suffix.lower() in LINES:
        if columns.adapter_column is not None or columns.pair_column is not None:
            raise UsageError(
                "a file of lines has no columns", where=path, fix="pass a csv, tsv, jsonl or Parquet table"
            )
        lines, note = text_lines(read_stream(path), path, columns.form.encoding)
        return FileRows(lines_as_rows(lines, str(path)), () if note is None else (note,))
    table = open_table(path, columns.form, skip_empty=False)
    return FileRows(_rows_of(table, columns), table.notes)


def _rows_of(table: TextTable, columns: Columns) -> Iterator[Row]:
    for line, cells in table.rows(columns.names, _NAME_COLUMNS):
        row = None
        with table.faults.of_line(line):
            row = columns.row(cells, table.where(line))
        if row is not None:
            yield row
    table.faults.check()


def lines_as_rows(lines: Sequence[str], where: str) -> Iterator[Row]:
    """Yield a row for each line; an empty line is an empty text."""
    return (Row(line.rstrip("\r\n"), where=f"{where}, line {number}") for number, line in enumerate(lines, 1))
