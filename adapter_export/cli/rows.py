"""Rows to run on, of texts or of arrays: what a call of some of them is fed, and what stands for each in results."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from adapter_export.cli.results import Token, array_tokens, text_tokens
from adapter_export.cli.sources import read_tokenizer, require
from adapter_export.errors import DataError, UsageError, within
from adapter_export.format.files import read_bytes
from adapter_export.format.tables import Row, check_columns, read_rows
from adapter_export.runtime import Bundle
from adapter_export.runtime.inputs import check_inputs

if TYPE_CHECKING:
    from adapter_export.text import Tokenizer


# Texts to run on: from the command line, from lines, or from a table whose rows may name their adapters.

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


Arrays = dict[str, np.ndarray]


class Rows(Protocol):
    """Rows that a call can have some of."""

    def __len__(self) -> int:
        """How many there are."""

    def name(self, row: int) -> str:
        """A row's text, or what stands for it."""

    def inputs(self, start: int, end: int) -> Arrays:
        """What a call of these rows is fed."""

    def tokens(self, start: int, end: int) -> list[list[Token]]:
        """The tokens of these rows, as `inputs` encodes them together."""


class TextRows:
    """Texts, encoded when a call needs them.

    Raises:
        UsageError: the bundle has no tokenizer.
    """

    def __init__(self, bundle: Bundle, texts: Sequence[Text]) -> None:
        self._texts = texts
        self._tokenizer = _open_tokenizer(bundle)
        self._names = [record.name for record in bundle.manifest.inputs]

    def __len__(self) -> int:
        return len(self._texts)

    def name(self, row: int) -> str:
        """A row's text."""
        return self._texts[row].text

    def inputs(self, start: int, end: int) -> Arrays:
        """The texts encoded, padded to the longest of them."""
        with within(self._place(start, end)):
            return dict(self._tokenizer.batch(self._of(start, end), self._names))

    def tokens(self, start: int, end: int) -> list[list[Token]]:
        """The tokens of these texts."""
        return text_tokens(self._tokenizer, self._of(start, end))

    def _of(self, start: int, end: int) -> list[str]:
        return [text.text for text in self._texts[start:end]]

    def _place(self, start: int, end: int) -> str:
        return self._texts[start].where + ("" if end == start + 1 else " and those after it")


class ArrayRows:
    """Arrays with an input of the base each, held against the manifest.

    Raises:
        RequestError: they do not fit.
    """

    def __init__(self, bundle: Bundle, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = check_inputs(arrays, bundle.manifest.inputs)
        self._mask = next((record.name for record in bundle.manifest.inputs if record.role == "mask"), None)

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def name(self, row: int) -> str:
        """A row's number."""
        return f"row {row}"

    def inputs(self, start: int, end: int) -> Arrays:
        """The arrays, or some of their rows."""
        return {name: array[start:end] for name, array in self._arrays.items()}

    def tokens(self, start: int, end: int) -> list[list[Token]]:
        """The tokens that the mask keeps."""
        shape = next(iter(self._arrays.values())).shape[:2]
        return array_tokens((np.ones(shape) if self._mask is None else self._arrays[self._mask])[start:end])


def _open_tokenizer(bundle: Bundle) -> Tokenizer:
    record = bundle.manifest.text
    if record is None:
        raise UsageError(
            "the bundle has no tokenizer, so it cannot read texts",
            fix="give `--arrays`, or build it again with `--tokenizer`",
        )
    require("tokenizers", "text", "reading texts")
    from adapter_export.text import Tokenizer

    return Tokenizer.from_json(read_tokenizer(bundle.folder / record.tokenizer), record.max_tokens)
