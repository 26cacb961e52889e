"""Rows to run on, texts or arrays: what a call of some of them is fed, and what stands for each in results."""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from adapter_export.api.base import open_tokenizer
from adapter_export.cli.results import Token
from adapter_export.errors import DataError, FormatError, UsageError, within
from adapter_export.format.files import new_file, read_bytes, unreadable
from adapter_export.format.tables import check_columns, read_rows, text_lines
from adapter_export.format.tensors import read_tensors, write_tensors
from adapter_export.runtime import Bundle
from adapter_export.runtime.inputs import check_inputs

Arrays = dict[str, np.ndarray]

_BASE = ("", "-", None)
"""How a cell of a table names the base alone."""

_NPZ, _SAFETENSORS = ".npz", ".safetensors"


@dataclass(frozen=True)
class Text:
    """A text, its place for messages, and the adapter that its row names, if any."""

    text: str
    where: str
    adapter: str | None = None


def read_texts(given: Sequence[str]) -> list[Text]:
    """Return the texts of the command line, or else each line of stdin that is not empty."""
    if given:
        return [Text(text, f"text {index}") for index, text in enumerate(given)]
    if sys.stdin.isatty():
        raise UsageError("there is nothing to run on", fix="give `--text`, `--data`, `--arrays`, or lines on stdin")
    found = list(_of_lines(sys.stdin.read().split("\n"), "stdin"))
    if not found:
        raise UsageError(
            "there is nothing to run on", found="no lines on stdin", fix="give `--text`, `--data` or `--arrays`"
        )
    return found


def read_file(path: Path, column: str, adapter_column: str | None) -> list[Text]:
    """Return each line of a `.txt` file, or a column of a csv, tsv or jsonl table, with the adapter of each row."""
    if path.suffix.lower() in (".txt", ".text"):
        if adapter_column is not None:
            raise UsageError("a file of lines has no columns", where=path, fix="give a csv, tsv or jsonl table")
        found = list(_of_lines(text_lines(read_bytes(path), path), str(path)))
    else:
        found = list(_of_table(path, column, adapter_column))
    if not found:
        raise DataError("holds no texts", where=path, expected="one text a line, or a table with a text in each row")
    return found


def _of_lines(lines: Iterable[str], where: str) -> Iterator[Text]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield Text(line.rstrip("\r\n"), f"{where}, line {number}")


def _of_table(path: Path, column: str, adapter_column: str | None) -> Iterator[Text]:
    wanted = [column] if adapter_column is None else [column, adapter_column]
    for number, cells in read_rows(path):
        where = f"{path}, line {number}"
        check_columns(cells, wanted, where, "name the columns with `--text-column` and `--adapter-column`")
        text, adapter = cells[column], None if adapter_column is None else cells[adapter_column]
        if not isinstance(text, str) or not text.strip():
            found = f"`{text}` in the column `{column}`"
            raise DataError("has no text", where=where, found=found, fix="give it one, or leave the row out")
        if adapter is not None and not isinstance(adapter, str):
            expected = "a name, or `-` for the base"
            raise DataError("names no adapter", where=where, found=f"`{adapter}`", expected=expected)
        yield Text(text, where, None if adapter in _BASE else adapter.strip())


class TextRows:
    """Texts, encoded when a call needs them."""

    def __init__(self, bundle: Bundle, texts: Sequence[Text]) -> None:
        self._texts = texts
        fix = "give `--arrays`, or build it again with `--tokenizer`"
        self._tokenizer = open_tokenizer(bundle.folder, bundle.manifest, fix=fix)
        self._inputs = [record.name for record in bundle.manifest.inputs]

    def __len__(self) -> int:
        return len(self._texts)

    def name(self, row: int) -> str:
        """Return a row's text."""
        return self._texts[row].text

    def inputs(self, start: int, end: int) -> Arrays:
        """Return the texts encoded, padded to the longest of them."""
        with within(self._texts[start].where + ("" if end == start + 1 else " and those after it")):
            return dict(self._tokenizer.batch(self._of(start, end), self._inputs))

    def tokens(self, start: int, end: int) -> list[list[Token]]:
        """Return the tokens of these texts, without padding and special ones, which have no labels."""
        return [
            [
                Token(place, text, encoding.offsets[place])
                for place, text in enumerate(encoding.tokens)
                if not encoding.special_tokens_mask[place] and encoding.attention_mask[place]
            ]
            for encoding in self._tokenizer.encode(self._of(start, end))
        ]

    def _of(self, start: int, end: int) -> list[str]:
        return [text.text for text in self._texts[start:end]]


class ArrayRows:
    """Arrays with the rows of each input of the base, checked against the manifest."""

    def __init__(self, bundle: Bundle, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = check_inputs(arrays, bundle.manifest.inputs)
        self._mask = next((record.name for record in bundle.manifest.inputs if record.role == "mask"), None)

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def name(self, row: int) -> str:
        """Return a row's number."""
        return f"row {row}"

    def inputs(self, start: int, end: int) -> Arrays:
        """Return these rows of every array."""
        return {name: array[start:end] for name, array in self._arrays.items()}

    def tokens(self, start: int, end: int) -> list[list[Token]]:
        """Return the tokens that the mask [rows, tokens] keeps, by their numbers."""
        shape = next(iter(self._arrays.values())).shape[:2]
        mask = np.ones(shape) if self._mask is None else self._arrays[self._mask]
        return [[Token(int(place), f"token {place}") for place in np.flatnonzero(row)] for row in mask[start:end]]


Rows: TypeAlias = TextRows | ArrayRows


def read_arrays(path: Path) -> Arrays:
    """Read arrays by name from a `.safetensors` or `.npz` file."""
    if path.suffix == _SAFETENSORS:
        return read_tensors(path)
    try:
        with path.open("rb") as file:  # NumPy leaves a file open that it cannot read
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                raise ValueError("one array without a name")
            return {name: found[name] for name in found.files}
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error) as error:
        raise FormatError(
            "is not an `.npz` of arrays",
            where=path,
            found=error,
            fix=f"write it with `numpy.savez(path, name=array)`, or give a `{_SAFETENSORS}` file",
        ) from error


def check_suffix(path: Path) -> None:
    """Refuse a name that does not say how arrays are to be written."""
    if path.suffix not in (_NPZ, _SAFETENSORS):
        expected = f"`{_NPZ}` or `{_SAFETENSORS}`"
        raise UsageError("the form of a file of arrays is not known", found=f"`{path.name}`", expected=expected)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, force: bool) -> None:
    """Write arrays by name, in the format that the suffix says."""
    with new_file(path, force=force) as temporary:
        if path.suffix == _SAFETENSORS:
            write_tensors(temporary, arrays)
        else:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
