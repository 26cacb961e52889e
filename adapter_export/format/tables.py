"""Rows of csv, tsv and jsonl files, read strictly: a row is understood, or named with its line."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adapter_export.errors import DataError, argument

_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_LONGEST_CELL = 10_000_000
_LINE = re.compile(r"[^\n]*\n|[^\n]+")  # not `splitlines`, which also splits at form feeds and U+2028

Row = tuple[int, Mapping[str, Any]]
"""A line number, counted from 1, and the cells of that line by column."""


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows of a table in UTF-8, told apart by its suffix or else by its first line.

    Raises:
        DataError: the file cannot be read, or a line is broken.
    """
    readers = {"csv": _csv_rows, "tsv": _tsv_rows, "jsonl": _jsonl_rows}
    try:
        lines = text_lines(path.read_bytes(), path)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=path, fix="check the path") from error
    return readers[_form(path, lines)](lines, path)


def check_columns(
    cells: Mapping[str, Any],
    wanted: Iterable[str],
    where: object,
    fix: str = f"name the columns with {argument('text')} and {argument('label')}",
) -> None:
    """Refuse a row that lacks a column.

    Args:
        cells: of the row.
        wanted: the columns.
        where: names the row in messages.
        fix: what to do about it.

    Raises:
        DataError: a column is missing.
    """
    for name in wanted:
        if name not in cells:
            raise DataError(
                f"there is no column `{name}`",
                where=where,
                found=", ".join(f"`{column}`" for column in cells) or "no columns",
                fix=fix,
            )


def text_lines(data: bytes, path: Path) -> list[str]:
    """Return the lines of a file in UTF-8, with their ends, without a byte order mark.

    Raises:
        DataError: it is not UTF-8; the message names the line.
    """
    try:
        return _LINE.findall(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            "is not UTF-8", where=f"{path}, line {line}", found=error.reason, fix="save the file as UTF-8"
        ) from error


def _form(path: Path, lines: list[str]) -> str:
    known = _SUFFIXES.get(path.suffix.lower())
    first = next((line for line in lines if line.strip()), "")
    return known or ("jsonl" if first.lstrip().startswith("{") else "tsv" if "\t" in first else "csv")


def _csv_rows(lines: list[str], path: Path) -> Iterator[Row]:
    """Rows by RFC 4180: a quoted cell may hold commas, quotes and line ends."""
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            if cells and header is None:
                header = _header(cells, path, start)
            elif cells and header is not None:
                yield start, _by_column(header, cells, path, start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"is not csv ({error})", where=f"{path}, line {start}", fix='write `"` inside a quoted cell as `""`'
        ) from error


def _tsv_rows(lines: list[str], path: Path) -> Iterator[Row]:
    """Rows with a tab between cells; a cell that begins with a quote is quoted only if it ends with one, too."""
    header: list[str] | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        cells = _tsv_cells(line.rstrip("\r\n"))
        if header is None:
            header = _header(cells, path, number)
        else:
            yield number, _by_column(header, cells, path, number)


def _tsv_cells(line: str) -> list[str]:
    """The cells of one line: the tab format has no quotes of its own, but spreadsheets write them."""
    try:
        return next(csv.reader([line], delimiter="\t", strict=True))
    except csv.Error:
        return line.split("\t")


def _jsonl_rows(lines: list[str], path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _json_object(line, path, number)


def _json_object(line: str, path: Path, number: int) -> Mapping[str, Any]:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"is not JSON ({error})", where=where, expected="one object a line") from error
    if not isinstance(row, dict):
        raise DataError("is not a JSON object", where=where, found=type(row).__name__, expected="one object a line")
    return row


def _header(cells: list[str], path: Path, line: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError("a column name occurs twice", where=f"{path}, line {line}", found=", ".join(twice))
    return names


def _by_column(header: list[str], cells: list[str], path: Path, line: int) -> Mapping[str, Any]:
    if len(cells) != len(header):
        raise DataError(
            "a row has a wrong number of cells",
            where=f"{path}, line {line}",
            found=len(cells),
            expected=f"{len(header)} ({', '.join(header)})",
            fix="put quotes around cells that hold the separator",
        )
    return dict(zip(header, cells, strict=True))
