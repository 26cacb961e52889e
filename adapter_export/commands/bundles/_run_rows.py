"""Input rows from the command line, stdin and files, their adapters, and arrays read from or written to files."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from adapter_export.errors import DataError, FormatError, UsageError, within
from adapter_export.format.tabular.table_files import text_lines
from adapter_export.format.tabular.table_rows import LINES, Columns, FileRows, file_rows, lines_as_rows
from adapter_export.format.tensors import read_tensors, write_tensors
from adapter_export.graph.tasks.asked import Row
from adapter_export.graph.tasks.cells import is_blank
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_bytes
from adapter_export.tables import number_of
from adapter_export.text import Pair
from adapter_export.words import argument, joined

if TYPE_CHECKING:
    from adapter_export.graph.task_names import ProblemType
    from adapter_export.runtime import Bundle, Session

Arrays = dict[str, np.ndarray]

BASE = "-"
"""Another name of `base` in lists of adapters."""

_CHOICES = joined(
    (
        argument("texts", option="text", words="'A TEXT'"),
        argument("data", words="FILE"),
        argument("arrays", words="FILE"),
    )
)
"""Arguments that provide rows, as a user types them."""

_MOST_UNPACKED = 4 * 2**30
"""Maximum unpacked bytes of an `.npz`: compression can shrink zeros a thousandfold, which would exhaust memory."""

_NPZ, _SAFETENSORS = ".npz", ".safetensors"


def check_together(
    arguments: Mapping[str, object],
    apart: Iterable[Sequence[str]],
    needs: Mapping[str, str],
    options: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Refuse arguments that exclude each other or lack the argument that they need.

    Args:
        arguments: of the call.
        apart: names of which one may be given.
        needs: names, each with the one that it needs.
        options: options whose names differ from their arguments'.
    """
    named = {name for name, value in arguments.items() if value not in (None, (), False)}
    for names in apart:
        both = [argument(name, option=options.get(name)) for name in names if name in named]
        if len(both) > 1:
            raise UsageError(joined(both, " and ") + " exclude each other", fix="remove " + both[0] + " or " + both[1])
    for name, other in needs.items():
        if name in named and other not in named:
            first, second = (argument(key, option=options.get(key)) for key in (name, other))
            raise UsageError(first + " needs " + second, fix="add " + second + ", or remove " + first)


def text_rows(texts: Sequence[str], pairs: Sequence[str] = (), encoding: str | None = None) -> FileRows:
    """Return the texts of the command line, or else each line of stdin, including empty lines.

    With one text and several `pairs`, the pairs are its choices.
    """
    if texts or pairs:
        return FileRows(iter(_typed_rows(texts, pairs)))
    if sys.stdin.isatty():
        raise UsageError("there is nothing to run on", fix="give one of " + _CHOICES + ", or lines on stdin")
    lines, note = text_lines(sys.stdin.buffer.read(), Path("stdin"), encoding)
    rows = list(lines_as_rows(lines, "stdin"))
    if all(is_blank(row.asked) for row in rows):
        raise UsageError("there is nothing to run on", found="no lines on stdin", fix="give one of " + _CHOICES)
    return FileRows(iter(rows), () if note is None else (note,))


def _typed_rows(texts: Sequence[str], pairs: Sequence[str]) -> list[Row]:
    if len(texts) == 1 and len(pairs) > 1:
        return [Row([Pair(texts[0], second) for second in pairs], where="text 0")]
    if pairs and len(pairs) != len(texts):
        raise UsageError(
            "the number of pairs does not match the number of texts",
            where=argument("pairs", option="pair"),
            found=f"{len(pairs)} for {number_of(len(texts), 'text')}",
            fix="give one per text, in the same order; for a single text, several are its choices",
        )
    contents = list(map(Pair, texts, pairs)) if pairs else texts
    return [Row(content, where=f"text {at}") for at, content in enumerate(contents)]


def read_file(path: Path, columns: Columns) -> FileRows:
    """Read all rows of a table or of a text file. Raises the errors of `file_rows`."""
    opened = file_rows(path, columns)
    rows = list(opened.rows)
    blank = all(isinstance(row.asked, str) and is_blank(row.asked) for row in rows)
    if not rows or (blank and path.suffix.lower() in LINES):  # a cell of a table may be an empty text
        raise DataError("contains no texts", where=path, expected="one text per line, or a table with rows")
    return FileRows(iter(rows), opened.notes)


def media_rows(paths: Sequence[str]) -> list[Row]:
    """Return the paths of images or audio as rows."""
    return [Row(path, where=f"file {at}") for at, path in enumerate(paths)]


def array_rows(bundle: Bundle, arrays: Mapping[str, np.ndarray]) -> list[Row]:
    """Split arrays into rows, after checking them against the manifest.

    Besides the base's inputs, `context` [rows, tokens] may mark the tokens that can answer a question.
    """
    from adapter_export.runtime.check_inputs import check_inputs

    inputs, contexts = bundle.manifest.inputs, None
    if "context" not in {record.name for record in inputs}:
        contexts = arrays.get("context")
        arrays = {name: array for name, array in arrays.items() if name != "context"}
    checked = check_inputs(arrays, inputs, bundle.manifest.lengths)
    count = len(next(iter(checked.values())))
    if contexts is not None and len(contexts) != count:
        mismatch = f"{len(contexts)} for {number_of(count, 'row')}"
        raise FormatError("has the wrong number of rows", where="`context`", found=mismatch)
    each = [{name: array[row : row + 1] for name, array in checked.items()} for row in range(count)]
    with_context = [None] * count if contexts is None else [row != 0 for row in contexts]
    return [
        Row(arrays, context=of, where=f"row {row}")
        for row, (arrays, of) in enumerate(zip(each, with_context, strict=True))
    ]


def load_adapter_file(session: Session, file: Path, labels: tuple[str, ...] | None, task: ProblemType | None) -> str:
    """Load an adapter from its file under an unused name."""
    name = file.name.partition(".")[0]
    name = f"{name}.loaded" if name in session.adapters else name
    session.load(name, file, labels=labels, task=task)
    return name


def with_adapters(rows: Sequence[Row], adapters: Sequence[str | None], *, fan_out: bool) -> list[Row]:
    """Pair rows with adapters: every row with all of them, or each with its own."""
    if fan_out or len(rows) == 1:
        return [replace(row, adapter=adapter) for row in rows for adapter in adapters]
    if len(adapters) != len(rows):
        raise UsageError(
            "the number of adapters does not match the number of rows",
            where=argument("adapters"),
            found=f"{number_of(len(adapters), 'adapter')} for {number_of(len(rows), 'row')}",
            fix=f"name one per row, `{BASE}` for the base; "
            + argument("fan_out", True)
            + " runs every row through all of them; "
            + argument("adapter")
            + " applies one to all rows",
        )
    return [replace(row, adapter=adapter) for row, adapter in zip(rows, adapters, strict=True)]


def check_adapters(rows: Sequence[Row], session: Session) -> None:
    """Raise an error that names the first row with an unknown adapter, before anything is computed."""
    for row in {row.adapter: row for row in reversed(rows)}.values():
        if row.adapter is not None:
            with within(row.where):
                session.task(row.adapter)


def read_arrays(path: Path) -> Arrays:
    """Read arrays by name from a `.safetensors` or `.npz` file."""
    if path.suffix == _SAFETENSORS:
        return read_tensors(path)

    def refusal(reason: str) -> FormatError:
        fix = f"write it with `numpy.savez(path, name=array)`, or use a `{_SAFETENSORS}` file"
        return FormatError("is not an `.npz` file of arrays", where=path, found=reason, fix=fix)

    data = read_bytes(path)
    with parsing(refusal), zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > _MOST_UNPACKED:
            raise refusal(f"{size:,} bytes when unpacked")
        arrays = np.load(io.BytesIO(data), allow_pickle=False)
        return {name: arrays[name] for name in arrays.files}


def check_suffix(path: Path) -> None:
    """Refuse a file name without a known suffix for arrays."""
    if path.suffix not in (_NPZ, _SAFETENSORS):
        expected = f"`{_NPZ}` or `{_SAFETENSORS}`"
        fix = "rename it: " + argument("out", words=f"{path.stem}{_NPZ}")
        raise UsageError("unknown file format for arrays", found=f"`{path.name}`", expected=expected, fix=fix)


def write_arrays(output: Output, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays in the format of the suffix."""
    with output.file() as temporary:
        if output.path.suffix == _SAFETENSORS:
            write_tensors(temporary, arrays)
        else:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
