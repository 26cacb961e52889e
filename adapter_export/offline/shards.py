"""Parts of Parquet and JSON lines files, read where they are answered."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

from adapter_export.errors import DataError, FileError, MissingExtraError
from adapter_export.format.tables import Row, json_object, text_lines
from adapter_export.reading.files import open_regular, sha256_of, unreadable
from adapter_export.reading.parsers import parsing

PARQUET, JSON_LINES = (".parquet", ".pq"), (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Shard:
    """Some rows of a file.

    Attributes:
        number: its place among all shards, from 0.
        path: of the file.
        state: the size of the file in bytes and the nanosecond of its last change, when the shards were made.
        start: the first byte of JSON lines, or the first row of a Parquet file, from 0.
        end: the first byte, or row, behind it.
        first: the number of its first line or row, from 1.
    """

    number: int
    path: str
    state: tuple[int, int]
    start: int
    end: int
    first: int

    @property
    def name(self) -> str:
        """The file with its answers."""
        return f"shard-{self.number:05d}.jsonl"

    @property
    def word(self) -> str:
        """What its rows are in messages."""
        return "row" if Path(self.path).suffix.lower() in PARQUET else "line"


def table_files(data: Path) -> list[Path]:
    """Return a file, or the files of a folder in the order of their names.

    Raises:
        FileError: there is none.
        DataError: one is neither Parquet nor JSON lines.
    """
    files = sorted(path for path in data.iterdir() if not path.name.startswith((".", "_"))) if data.is_dir() else [data]
    for path in files:
        if path.suffix.lower() not in PARQUET + JSON_LINES:
            raise DataError(
                "is neither Parquet nor JSON lines",
                where=path,
                expected=f"a name that ends with {', '.join(PARQUET + JSON_LINES)}",
            )
    if not files:
        raise FileError("has no files", where=data, expected="Parquet or JSON lines")
    return files


def shards_of(files: Sequence[Path], rows: int) -> tuple[list[Shard], list[str]]:
    """Return shards of so many rows, the last of each file perhaps shorter, and the sha256 of each file.

    Raises:
        FileError: a file cannot be read.
        DataError: it is no Parquet.
        MissingExtraError: pyarrow is not installed.
    """
    shards, digests = list[Shard](), list[str]()
    for path in files:
        if path.suffix.lower() in PARQUET:
            state = _state(path)
            digests.append(sha256_of(path))
            total = _rows_of_parquet(path)
            marks = [(first, first + 1) for first in [*range(0, total, rows), total]]
        else:
            state, digest, marks = _scan(path, rows)
            digests.append(digest)
        for (start, first), (end, _) in pairwise(marks):
            shards.append(Shard(len(shards), str(path), state, start, end, first))
    return shards, digests


def read_shard(shard: Shard, columns: Sequence[str]) -> Iterator[Row]:
    """Read the rows of a shard, with their numbers; of a Parquet file the named columns alone.

    Raises:
        FileError: the file cannot be read, or was changed since the shards were made.
        DataError: a row is broken.
    """
    path = Path(shard.path)
    if _state(path) != shard.state:
        raise FileError("was changed since the work on it began", where=path, fix="give another folder for the answers")
    if path.suffix.lower() in PARQUET:
        yield from enumerate(_parquet(path, shard.start, shard.end, columns), shard.first)
        return
    with open_regular(path) as file:
        try:
            file.seek(shard.start)
            data = file.read(shard.end - shard.start)
        except (OSError, MemoryError) as error:
            raise unreadable(path, error) from error
    for number, line in enumerate(text_lines(data, path, shard.first), shard.first):
        if line.strip():
            yield number, json_object(line, path, number)


def _state(path: Path) -> tuple[int, int]:
    with open_regular(path) as file:
        found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _scan(path: Path, rows: int) -> tuple[tuple[int, int], str, list[tuple[int, int]]]:
    """Return the state of a file, its sha256, and where each `rows`-th row begins, with its line; last the end."""
    digest, marks, at, number, row = hashlib.sha256(), list[tuple[int, int]](), 0, 0, 0
    with open_regular(path) as file:
        found = os.fstat(file.fileno())
        try:
            for line in file:
                if line.strip():  # an empty line is no row
                    if row % rows == 0:
                        marks.append((at, number + 1))
                    row += 1
                digest.update(line)
                at, number = at + len(line), number + 1
        except (OSError, MemoryError) as error:
            raise unreadable(path, error) from error
    return (found.st_size, found.st_mtime_ns), digest.hexdigest(), [*marks, (at, number + 1)]


def _rows_of_parquet(path: Path) -> int:
    parquet = _pyarrow()
    with open_regular(path) as file, parsing(lambda reason: _no_parquet(path, reason)):
        return int(parquet.ParquetFile(file).metadata.num_rows)


def _parquet(path: Path, start: int, end: int, columns: Sequence[str]) -> list[dict[str, object]]:
    parquet = _pyarrow()
    with open_regular(path) as file, parsing(lambda reason: _no_parquet(path, reason)):
        opened = parquet.ParquetFile(file)
        there = [name for name in columns if name in opened.schema_arrow.names]
        groups, before, skipped = list[int](), 0, 0
        for group in range(opened.metadata.num_row_groups):
            after = before + opened.metadata.row_group(group).num_rows
            if before < end and after > start:
                groups.append(group)
            elif after <= start:
                skipped = after
            before = after
        table = opened.read_row_groups(groups, columns=there).slice(start - skipped, end - start)
        if there:
            rows: list[dict[str, object]] = table.to_pylist()
            return rows
    return [{} for _ in range(end - start)]


def _no_parquet(path: Path, reason: str) -> DataError:
    return DataError("cannot be read as Parquet", where=path, found=reason)


def _pyarrow() -> ModuleType:
    try:
        import pyarrow.parquet  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra="ray", needed_for="Parquet") from error
    module: ModuleType = pyarrow.parquet
    return module
