"""Strict reader of csv, tsv, jsonl and Parquet files: every invalid row is reported with its line."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from adapter_export.errors import DataError, UsageError
from adapter_export.format.tabular.encodings import decoded, known_encoding
from adapter_export.format.tabular.parquet_files import PARQUET, columns_of_parquet, parquet_rows
from adapter_export.format.tabular.table_faults import TableFaults
from adapter_export.graph.tasks.cells import trimmed
from adapter_export.option import DELIMITER, ENCODING
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_stream
from adapter_export.words import argument, did_you_mean, quoted

_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_DELIMITERS = {"csv": (",", ";", "\t", "|"), "tsv": ("\t", ";", ","), None: ("\t", ",", ";", "|")}
"""Delimiters to detect, by suffix, in order of preference."""

_NAMED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')
"""Excel's optional first line, which names the delimiter."""

_LONGEST_CELL = 10_000_000
"""Maximum characters of a cell: some texts exceed the csv module's own limit of 131,072."""

_ROWS_COMPARED = 20
_LINE = re.compile(r"[^\n]*\n|[^\n]+")  # `splitlines` would also split at form feeds and U+2028

NAME_COLUMNS = "name the columns with " + argument("text") + " and " + argument("label")

Row = tuple[int, Mapping[str, Any]]
"""A line number, for Parquet a row number, from 1, and the cells by column."""


@dataclass(frozen=True)
class TableFormat:
    """Delimiter and encoding of a table; `None` is detected."""

    delimiter: Annotated[str | None, DELIMITER] = None
    encoding: Annotated[str | None, ENCODING] = None

    def __post_init__(self) -> None:
        if self.separator is not None and (len(self.separator) != 1 or self.separator in '"\r\n'):
            expected = "one character, such as `;`, or `tab`"
            raise UsageError(
                "is not a delimiter", where=argument("delimiter"), found=f"`{self.delimiter}`", expected=expected
            )
        if self.encoding is not None:
            known_encoding(self.encoding)

    @property
    def separator(self) -> str | None:
        """Character between cells."""
        return None if self.delimiter is None else _NAMED.get(self.delimiter, self.delimiter)


DETECTED = TableFormat()
"""Default: detect delimiter and encoding."""


@dataclass(frozen=True)
class TextTable:
    """A table whose rows have not been read yet.

    Attributes:
        path: the file.
        columns: column names of the header, or of the first row of JSON lines.
        header: line of the header, 0 for Parquet; `None` for JSON lines, where each row has its own names.
        notes: notes on an unusual detected delimiter or encoding.
        faults: receives the faults of rows as they are read.
    """

    path: Path
    columns: tuple[str, ...]
    header: int | None
    notes: tuple[str, ...]
    faults: TableFaults
    _rows: Iterator[tuple[int, Callable[[], Mapping[str, Any]]]]

    def where(self, line: int) -> str:
        """Return the name of a line in messages; 0 is the table."""
        return f"{self.path}, line {line}" if line else str(self.path)

    def rows(self, needed: Sequence[str], fix: str = NAME_COLUMNS) -> Iterator[Row]:
        """Yield rows with the needed columns; other rows are added to the faults."""
        lacking = self.header is not None and bool(self.columns) and not set(needed) <= set(self.columns)
        if self.header is not None and lacking:
            with self.faults.of_line(self.header) if self.header else self.faults.of_table():
                check_columns(self.columns, needed, self.where(self.header), fix)
        for line, read in self._rows:
            last = None
            with self.faults.of_line(line):
                cells = read()
                if self.header is None:
                    check_columns(list(cells), needed, self.where(line), fix)
                last = cells
            if last is not None and not lacking:
                yield line, last


def open_table(path: Path, form: TableFormat = DETECTED, *, skip_empty: bool = True) -> TextTable:
    """Open a table, detecting its format by suffix, or else by its first line.

    Args:
        path: the file.
        form: delimiter and encoding.
        skip_empty: skip empty lines. Otherwise, an empty line before the last row is a fault, so that rows correspond
            to lines.

    Raises:
        FileError: the file cannot be read.
        DataError: the file is not text, or its header repeats a column.
        MissingExtraError: the file is Parquet, and pyarrow is not installed.
    """
    if path.suffix.lower() in PARQUET:
        return _parquet_table(path)
    lines, note = text_lines(read_stream(path), path, form.encoding)
    notes = [] if note is None else [note]
    while lines and not lines[-1].strip():
        lines.pop()
    faults, suffix = TableFaults(path), _SUFFIXES.get(path.suffix.lower())
    first = next((line for line in lines if line.strip()), "")
    if suffix == "jsonl" or (suffix is None and form.delimiter is None and first.lstrip().startswith("{")):
        numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip() or not skip_empty)
        objects = ((number, _later(json_object, line, path, number)) for number, line in numbered)
        columns: tuple[str, ...] = ()
        with suppress(DataError):  # reported again when the row is read
            columns = tuple(json_object(first, path, 1)) if first else ()
        return TextTable(path, columns, None, tuple(notes), faults, objects)
    marked = _SEPARATOR_LINE.fullmatch(first)
    if marked is not None:
        lines[lines.index(first)] = "\n"
    delimiter = form.separator or (_delimiter(lines, suffix) if marked is None else marked[1])
    if form.delimiter is None and delimiter != _DELIMITERS[suffix][0] and suffix is not None:
        notes.append(f"{path.name} was read with {_word(delimiter)} between cells, as in its header")
    cells = _tsv_cells(lines) if delimiter == "\t" else _csv_cells(lines, path, delimiter, faults)
    kept_rows = ((number, row) for number, row in cells if row or not skip_empty)
    start, header = next(((number, row) for number, row in kept_rows if row), (1, []))
    names = tuple(map(trimmed, header))
    _check_names(names, f"{path}, line {start}")
    rows = ((number, _later(_by_column, row, names, f"{path}, line {number}")) for number, row in kept_rows)
    return TextTable(path, names, start, tuple(notes), faults, rows)


def _check_names(columns: Sequence[str], where: object) -> None:
    twice = sorted(name for name, count in Counter(columns).items() if count > 1)
    if twice:
        raise DataError("a column name occurs twice", where=where, found=", ".join(twice))


def _parquet_table(path: Path) -> TextTable:
    columns = columns_of_parquet(path)
    _check_names(columns, path)
    rows = ((number, lambda row=row: row) for number, row in enumerate(parquet_rows(path, 0, None, columns), 1))
    return TextTable(path, columns, 0, (), TableFaults(path), rows)


def check_columns(cells: Collection[str], wanted: Sequence[str], where: object, fix: str = NAME_COLUMNS) -> None:
    """Raise DataError for a header or row that lacks a column."""
    for name in wanted:
        if name not in cells:
            shown, fix = quoted(cells) or "no columns", did_you_mean(name, cells, fix)
            raise DataError(f"there is no column `{name}`", where=where, found=shown, fix=fix)


def text_lines(data: bytes, path: Path, encoding: str | None = None, first: int = 1) -> tuple[list[str], str | None]:
    """Return the lines of a file, with their ends, and a note on an encoding that was detected.

    For arguments and errors see `decoded`.
    """
    text, note = decoded(data, path, encoding, first)
    return _LINE.findall(text), note


def json_object(line: str, path: Path, number: int) -> Mapping[str, Any]:
    """Parse one line of JSON lines.

    Raises:
        DataError: the line is not a JSON object.
    """
    where = f"{path}, line {number}"
    with parsing(lambda reason: DataError(f"is not JSON ({reason})", where=where, expected="one object a line")):
        row = json.loads(line.rstrip())  # stripped, so that error positions refer to this line
    if not isinstance(row, dict):
        raise DataError("is not a JSON object", where=where, found=type(row).__name__, expected="one object a line")
    return row


def _word(delimiter: str) -> str:
    return "tabs" if delimiter == "\t" else f"`{delimiter}`"


def _delimiter(lines: Sequence[str], suffix: str | None) -> str:
    """Return the delimiter that splits the header and the first rows into the same number of cells, at least two."""
    candidates = _DELIMITERS[suffix]
    csv.field_size_limit(_LONGEST_CELL)
    for candidate in candidates:
        try:
            rows = [row for row in islice(csv.reader(lines, delimiter=candidate), _ROWS_COMPARED) if row]
        except csv.Error:
            continue
        if rows and len(rows[0]) > 1 and {len(row) for row in rows} == {len(rows[0])}:
            return candidate
    header = next((line for line in lines if line.strip()), "")
    # rows with other numbers of cells are faults: use only the header
    return next((candidate for candidate in candidates if candidate in header), candidates[0] if suffix else ",")


def _csv_cells(lines: list[str], path: Path, delimiter: str, faults: TableFaults) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row (RFC 4180) with its first line; quoted cells may contain delimiters and line breaks.

    An unclosed quote is added to the faults and ends the reading.
    """
    csv.field_size_limit(_LONGEST_CELL)  # global setting; a passed delimiter skips the detection
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        fix = 'write `"` inside a quoted cell as `""`; later lines were not checked'
        faults.add(DataError(f"is not csv ({error})", where=f"{path}, line {start}", fix=fix), start)


def _tsv_cells(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row with its line. The format has no quotes, but spreadsheets write them.

    A cell that starts with a quote is quoted only if it also ends with one.
    """
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        try:
            yield number, next(csv.reader([text], delimiter="\t", strict=True)) if line.strip() else []
        except csv.Error:
            yield number, text.split("\t")


def _by_column(cells: Sequence[str], header: Sequence[str], where: str) -> Mapping[str, str]:
    """Return the cells of a row by column name."""
    if len(cells) != len(header):
        raise DataError(
            "a row has a wrong number of cells",
            where=where,
            found=len(cells),
            expected=f"{len(header)} ({', '.join(header)})",
            fix="quote cells that contain the delimiter",
        )
    return dict(zip(header, cells, strict=True))


def _later(read: Callable[..., Mapping[str, Any]], *arguments: object) -> Callable[[], Mapping[str, Any]]:
    return lambda: read(*arguments)
