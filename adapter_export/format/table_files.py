"""Rows of csv, tsv and jsonl files, read strictly: a row is understood, or named with its line."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adapter_export.errors import DataError, argument, quoted
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_stream

_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_NO_TEXT = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip file, as spreadsheets are (`.xlsx`)",
    b"\x1f\x8b": "a gzip file",
}
_LONGEST_CELL = 10_000_000
_SHOWN = 60
_LINE = re.compile(r"[^\n]*\n|[^\n]+")  # not `splitlines`, which also splits at form feeds and U+2028

Row = tuple[int, Mapping[str, Any]]
"""A line number, counted from 1, and the cells of that line by column."""


def read_rows(path: Path, *, skip_empty: bool = True) -> Iterator[Row]:
    """Read the rows of a table in UTF-8, told apart by its suffix or else by its first line.

    Args:
        path: the file.
        skip_empty: pass over empty lines. Without it, one before the last row is an error, so that what is said of the
            rows corresponds to the lines.

    Raises:
        FileError: the file cannot be read.
        DataError: a line is broken.
    """
    lines = text_lines(read_stream(path), path)
    while lines and not lines[-1].strip():
        lines.pop()
    first = next((line for line in lines if line.strip()), "")
    guess = "jsonl" if first.lstrip().startswith("{") else "tsv" if "\t" in first else "csv"
    form = _SUFFIXES.get(path.suffix.lower(), guess)
    if form == "jsonl":
        kept = ((number, line) for number, line in enumerate(lines, 1) if line.strip() or not skip_empty)
        return ((number, json_object(line, path, number)) for number, line in kept)
    cells = _csv_cells(lines, path) if form == "csv" else _tsv_cells(lines)
    return _by_column(((number, row) for number, row in cells if row or not skip_empty), path)


def check_columns(
    cells: Mapping[str, Any],
    wanted: Iterable[str],
    where: object,
    fix: str = f"name the columns with {argument('text')} and {argument('label')}",
) -> None:
    """Raise a `DataError` for a row that lacks a column."""
    for name in wanted:
        if name not in cells:
            raise DataError(f"there is no column `{name}`", where=where, found=quoted(cells) or "no columns", fix=fix)


def text_lines(data: bytes, path: Path, first: int = 1) -> list[str]:
    """Return the lines of a file in UTF-8, with their ends, without a byte order mark.

    Args:
        data: the file, or a part of it that begins with a line.
        path: for messages.
        first: the number of the first line.

    Raises:
        DataError: it is not UTF-8; the message names the line, or what it is.
    """
    other = next((name for mark, name in _NO_TEXT.items() if first == 1 and data.startswith(mark)), None)
    if other is not None:
        expected = "csv, tsv or JSON lines, in UTF-8"
        raise DataError("is no text", where=path, found=other, expected=expected, fix="save it as one of these")
    try:
        return _LINE.findall(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + first
        raise DataError(
            "is not UTF-8", where=f"{path}, line {line}", found=error.reason, fix="save the file as UTF-8"
        ) from error


def json_object(line: str, path: Path, number: int) -> Mapping[str, Any]:
    """Return the object in a line of JSON lines.

    Raises:
        DataError: it is none.
    """
    where = f"{path}, line {number}"
    with parsing(lambda reason: DataError(f"is not JSON ({reason})", where=where, expected="one object a line")):
        row = json.loads(line)
    if not isinstance(row, dict):
        raise DataError("is not a JSON object", where=where, found=type(row).__name__, expected="one object a line")
    return row


def _csv_cells(lines: list[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row by RFC 4180, with its first line: a quoted cell may hold commas, quotes and line ends."""
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(lines, strict=True)
    start = 1
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"is not csv ({error})", where=f"{path}, line {start}", fix='write `"` inside a quoted cell as `""`'
        ) from error


def _tsv_cells(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, with its line: the tab format has no quotes of its own, but spreadsheets write them.

    A cell that begins with a quote is quoted only if it ends with one, too.
    """
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        try:
            yield number, next(csv.reader([text], delimiter="\t", strict=True)) if line.strip() else []
        except csv.Error:
            yield number, text.split("\t")


def _by_column(rows: Iterator[tuple[int, list[str]]], path: Path) -> Iterator[Row]:
    """The rows after the header, by its names."""
    start, cells = next(((number, row) for number, row in rows if row), (1, []))
    header = [cell.strip() for cell in cells]
    if len(header) == 1 and ";" in header[0]:
        raise DataError(
            "the cells are not separated by commas or tabs",
            where=f"{path}, line {start}",
            found=f"`{header[0][:_SHOWN]}`",
            expected="`,` in a csv file, a tab in a tsv file",
            fix="save the table with commas, or as tsv",
        )
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice:
        raise DataError("a column name occurs twice", where=f"{path}, line {start}", found=", ".join(twice))
    for number, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                "a row has a wrong number of cells",
                where=f"{path}, line {number}",
                found=len(cells),
                expected=f"{len(header)} ({', '.join(header)})",
                fix="put quotes around cells that hold the separator",
            )
        yield number, dict(zip(header, cells, strict=True))
