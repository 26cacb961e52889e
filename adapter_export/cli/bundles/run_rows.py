"""Rows to run on, texts or arrays: what a call of some of them is fed, and what stands for each in results."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from adapter_export.errors import DataError, FormatError, UsageError, within
from adapter_export.format.files import new_file
from adapter_export.format.table_files import read_rows, text_lines
from adapter_export.format.tensors import read_tensors, write_tensors
from adapter_export.graph.tasks import TOKEN_TYPES, Task
from adapter_export.offline.rows import Columns, Text
from adapter_export.reading.parsers import parsing
from adapter_export.reading.regular_files import read_bytes, read_stream
from adapter_export.runtime import Bundle
from adapter_export.runtime.answers import Span, answer
from adapter_export.runtime.check_inputs import check_inputs
from adapter_export.runtime.answerer import LongTexts
from adapter_export.runtime.text_answers import ReadText, TextAnswer, Token, answered
from adapter_export.text import Pair

Arrays = dict[str, np.ndarray]

_MOST_UNPACKED = 4 * 2**30
"""The most bytes of the arrays of an `.npz`, which may be compressed to a thousandth."""

_NPZ, _SAFETENSORS = ".npz", ".safetensors"


def read_texts(given: Sequence[str], pairs: Sequence[str] = ()) -> list[Text]:
    """Return the texts of the command line, or else each line of stdin that is not empty.

    Of one text with several `pairs`, these are choices.
    """
    if len(given) == 1 and len(pairs) > 1:
        return [Text([Pair(given[0], second) for second in pairs], "text 0")]
    if pairs and len(pairs) != len(given):
        raise UsageError(
            "there is not one second text for each text",
            where="`--pair`",
            found=f"{len(pairs)} for {len(given)} texts",
            fix="give one for each, in the order of the texts; of one text, several are choices",
        )
    if given:
        seconds: Sequence[str | None] = pairs or [None] * len(given)
        both = enumerate(zip(given, seconds, strict=True))
        return [Text(text if second is None else Pair(text, second), f"text {at}") for at, (text, second) in both]
    if sys.stdin.isatty():
        raise UsageError("there is nothing to run on", fix="give `--text`, `--data`, `--arrays`, or lines on stdin")
    found = list(_of_lines(sys.stdin.read().split("\n"), "stdin"))
    if not found:
        raise UsageError(
            "there is nothing to run on", found="no lines on stdin", fix="give `--text`, `--data` or `--arrays`"
        )
    return found


def read_file(path: Path, column: str, pair_column: str | None, adapter_column: str | None) -> list[Text]:
    """Return each line of a `.txt` file, or columns of a csv, tsv or jsonl table, with the adapter of each row."""
    if path.suffix.lower() in (".txt", ".text"):
        if adapter_column is not None or pair_column is not None:
            raise UsageError("a file of lines has no columns", where=path, fix="give a csv, tsv or jsonl table")
        found = list(_of_lines(text_lines(read_stream(path), path), str(path)))
    else:
        found = list(_of_table(path, column, pair_column, adapter_column))
    if not found:
        raise DataError("holds no texts", where=path, expected="one text a line, or a table with a text in each row")
    return found


def _of_lines(lines: Iterable[str], where: str) -> Iterator[Text]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield Text(line.rstrip("\r\n"), f"{where}, line {number}")


def _of_table(path: Path, column: str, pair_column: str | None, adapter_column: str | None) -> Iterator[Text]:
    columns = Columns(column, pair_column, adapter_column)
    return (columns.text(cells, f"{path}, line {number}") for number, cells in read_rows(path))


@dataclass(frozen=True)
class Feed:
    """What a call is fed for some rows: `parts` has how many rows of it are those of each, windows or choices."""

    arrays: Arrays
    parts: Sequence[int]


class TextRows:
    """Texts, made tokens when a call needs them, each by the record of its adapter; or paths of pictures or clips.

    `reader` is a `TextReader`, or a `MediaReader`.
    """

    def __init__(
        self, reader: Any, texts: Sequence[Text], names: Sequence[str | None], long: LongTexts, stride: int | None
    ) -> None:
        self._reader, self._texts, self._names = reader, texts, names
        self._long, self._stride = long, stride
        self._read: dict[int, ReadText] = {}
        self.cut: dict[str, int] = {}
        """How many tokens were left out of each text that was cut, by its place."""

    def __len__(self) -> int:
        return len(self._texts)

    def facts(self, row: int) -> dict[str, Any]:
        """Return a row's text, or texts."""
        text = self._texts[row]
        second = {} if text.second is None else {"choices" if isinstance(text.second, list) else "pair": text.second}
        return {"text": text.name, **second}

    def cut_of(self, row: int) -> int:
        """Return how many tokens of a row's text were left out."""
        return self.cut.get(self._texts[row].where, 0)

    def feed(self, start: int, end: int) -> Feed:
        """Return the texts as tokens, padded to the longest of them."""
        read = [self._reading(row) for row in range(start, end)]
        with within(self._texts[start].where + ("" if end == start + 1 else " and those after it")):
            return Feed(
                dict(self._reader.arrays(row for one in read for row in one.rows)), [len(one.rows) for one in read]
            )

    def calls(self, row: int) -> list[Arrays]:
        """Return what a call for each window or choice of one text is fed."""
        read = self._reading(row)
        with within(self._texts[row].where):
            return [dict(self._reader.arrays([one])) for one in read.rows]

    def said(self, row: int, results: Sequence[np.ndarray], task: Task) -> TextAnswer:
        """Return what the adapter of a row says of its text, from the results of its rows in a call."""
        read = self._read.pop(row)
        if task.type in TOKEN_TYPES:  # without padding
            pairs = zip(read.rows, results, strict=True)
            results = [found[self._reader.tokenizer.real(len(one.encoding.ids), len(found))] for one, found in pairs]
        with within(self._texts[row].where):
            return answered(read, results)

    def _reading(self, row: int) -> ReadText:
        if row not in self._read:
            text = self._texts[row]
            name, places = self._names[row], [text.where]
            read: ReadText
            (read,) = self._reader.read([text.text], name, long=self._long, stride=self._stride, places=places)
            if read.task is not None:  # which looks at it again
                self._read[row] = read
            if read.cut:
                self.cut[text.where] = read.cut
            return read
        return self._read[row]


class ArrayRows:
    """Arrays with the rows of each input of the base, checked against the manifest."""

    def __init__(self, bundle: Bundle, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = check_inputs(arrays, bundle.manifest.inputs, bundle.manifest.lengths)
        self._mask = next((record.name for record in bundle.manifest.inputs if record.role == "mask"), None)
        self.cut: dict[str, int] = {}
        """No array is cut."""
        self._times = 1

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def repeat(self, times: int) -> None:
        """Let each row be so many, one behind the other."""
        self._arrays = {name: np.repeat(array, times, 0) for name, array in self._arrays.items()}
        self._times *= times

    def facts(self, row: int) -> dict[str, Any]:
        """Return a row's number."""
        return {"text": f"row {row // self._times}"}

    def cut_of(self, _row: int) -> int:
        """Return that nothing was left out."""
        return 0

    def feed(self, start: int, end: int) -> Feed:
        """Return these rows of every array."""
        arrays = {name: array[start:end] for name, array in self._arrays.items()}
        return Feed(arrays, [1] * (end - start))

    def calls(self, row: int) -> list[Arrays]:
        """Return this row of every array."""
        return [self.feed(row, row + 1).arrays]

    def said(self, row: int, results: Sequence[np.ndarray], task: Task) -> TextAnswer:
        """Return what the adapter of a row says, of the tokens that the mask [rows, tokens] keeps."""
        (result,) = results
        if task.type not in TOKEN_TYPES:
            return TextAnswer(answer(task, result))
        shape = next(iter(self._arrays.values())).shape[:2]
        mask = np.ones(shape) if self._mask is None else self._arrays[self._mask]
        places = np.flatnonzero(mask[row])
        found = answer(task, result[places])
        if isinstance(found, Span):
            return TextAnswer(replace(found, start=int(places[found.start]), end=int(places[found.end])))
        return TextAnswer(found, tokens=tuple(Token(f"token {place}") for place in places))


Rows: TypeAlias = TextRows | ArrayRows


def read_arrays(path: Path) -> Arrays:
    """Read arrays by name from a `.safetensors` or `.npz` file."""
    if path.suffix == _SAFETENSORS:
        return read_tensors(path)

    def refusal(reason: str) -> FormatError:
        fix = f"write it with `numpy.savez(path, name=array)`, or give a `{_SAFETENSORS}` file"
        return FormatError("is not an `.npz` of arrays", where=path, found=reason, fix=fix)

    data = read_bytes(path)
    with parsing(refusal), zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > _MOST_UNPACKED:
            raise refusal(f"{size:,} bytes when unpacked")
        found = np.load(io.BytesIO(data), allow_pickle=False)
        return {name: found[name] for name in found.files}


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
