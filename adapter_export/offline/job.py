"""The answers of a bundle to a table of any length: in shards, each written when it is whole, here or by Ray Data.

A shard has the same answers whoever computes it: what goes into one call depends on the rows of the shard alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from adapter_export import errors
from adapter_export.errors import (
    AdapterExportError,
    DataError,
    FileError,
    MissingExtraError,
    OutputExistsError,
    argument,
    quoted,
    within,
)
from adapter_export.format.files import canonical_json, locked, new_file
from adapter_export.format.table_files import Row, json_object, text_lines
from adapter_export.offline.rows import Columns, Text
from adapter_export.practice.run_workers import RayWorkers
from adapter_export.reading.documents import read_json
from adapter_export.reading.parsers import parsing
from adapter_export.reading.regular_files import open_regular, sha256_of, unreadable
from adapter_export.runtime import Bundle
from adapter_export.runtime.graphs import Provider
from adapter_export.runtime.answerer import LongTexts
from adapter_export.runtime.text_reader import TextReader, answer_all
from adapter_export.version import __version__

WINDOW = 2048
"""How many rows are sorted by length at a time: more would need more memory, and hardly save more padding."""

_JOB_FILE = "job.json"
OnShard = Callable[[int, int], object]
"""Is told how many shards have answers now, and how many there are."""

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


@dataclass(frozen=True)
class Job:
    """What is done with each row.

    Attributes:
        bundle: its folder.
        digest: the sha256 of its manifest: every worker has this very bundle.
        columns: of the table.
        adapter: of all rows, where no column names one; none is the base's own head.
        long: what becomes of texts that are too long.
        stride: of windows.
        token_budget: the most tokens of a call.
        allow_mixed_rows: as in `Session.run`.
        provider: where to compute.
        threads: of one operation.
    """

    bundle: str
    digest: str
    columns: Columns
    adapter: str | None
    long: LongTexts
    stride: int | None
    token_budget: int
    allow_mixed_rows: bool
    provider: Provider
    threads: int

    def reader(self) -> TextReader:
        """Open the bundle for work on shards."""
        opened = Bundle.open(self.bundle, expect=self.digest)
        return opened.texts(opened.session(provider=self.provider, threads=self.threads, on_demand=True))


@dataclass(frozen=True)
class Answered:
    """A folder with answers.

    Attributes:
        folder: has `shard-00000.jsonl` and so on, one document a line: put one behind the other, they are in the order
            of the rows.
        shards: how many there are.
        reused: how many of them were there before.
    """

    folder: Path
    shards: int
    reused: int


def run_job(
    job: Job,
    data: Path,
    output: Path,
    *,
    shard_rows: int,
    ray: str | None,
    workers: int | None,
    on_shard: OnShard,
    force: bool,
) -> Answered:
    """Answer every shard that has no answers yet.

    Raises:
        OutputExistsError, FileError: the folder holds something else, or another job; another process writes there.
        FileError, DataError: the table cannot be read, or a row is broken; shards before it keep their answers.
        RequestError: a text or an adapter does not fit.
        UsageError: there is no such cluster.
    """
    shards, digests = shards_of(table_files(data), shard_rows)
    facts = {name: value for name, value in asdict(job).items() if name != "bundle"}
    identity = {**facts, "data": digests, "shard_rows": shard_rows, "version": __version__}
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with locked(output):
        _claim(output, identity, force=force)
        left = [shard for shard in shards if not (output / shard.name).is_file()]
        reused = len(shards) - len(left)
        on_shard(reused, len(shards))
        done = _here(job, left, output) if ray is None else _by_ray(job, left, output, ray, workers)
        for count, _ in enumerate(done, reused + 1):
            on_shard(count, len(shards))
    return Answered(output, len(shards), reused)


def answer_shard(job: Job, reader: TextReader, shard: Shard, output: Path) -> None:
    """Write the answers to the rows of a shard, in their order; nothing of it stays if one cannot be answered."""
    rows = [
        job.columns.text(cells, f"{shard.path}, {shard.word} {number}")
        for number, cells in read_shard(shard, job.columns.names)
    ]
    with new_file(output / shard.name, force=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        for start in range(0, len(rows), WINDOW):
            for document in _answers(job, reader, rows[start : start + WINDOW]):
                file.write(json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")


def _answers(job: Job, reader: TextReader, rows: Sequence[Text]) -> Iterator[dict[str, Any]]:
    """Yield what `run --many` writes of each row."""
    names = [job.adapter if job.columns.adapter_column is None else row.adapter for row in rows]
    for name, row in dict(zip(reversed(names), reversed(rows), strict=True)).items():
        with within(row.where):  # a row of an adapter that answers nothing
            reader.session.answering(name)
    read = reader.read(
        [row.text for row in rows], adapters=names, long=job.long, stride=job.stride, places=[row.where for row in rows]
    )
    found = answer_all(reader, read, None, job.allow_mixed_rows, job.token_budget, None)
    for row, one, answer in zip(rows, read, found, strict=True):
        second = {} if row.second is None else {"choices" if isinstance(row.second, list) else "pair": row.second}
        task = None if one.task is None else one.task.type
        yield {"text": row.name, "adapter": one.adapter, "task": task, **second, **answer.document()}


def _claim(output: Path, identity: dict[str, Any], *, force: bool) -> None:
    """Make the folder of a job, or go on with the same one."""
    file = output / _JOB_FILE
    if output.exists() and not file.is_file() and any(output.iterdir()):
        raise OutputExistsError(output)
    if file.is_file():
        before: Any = read_json(file)
        known = json.loads(json.dumps(identity))
        if before == known:
            return
        if not force:
            differing = sorted(
                name for name in known if not isinstance(before, dict) or before.get(name) != known[name]
            )
            raise FileError(
                "holds the answers of another job",
                where=output,
                found=f"another {quoted(differing)}",
                fix=f"give another folder, or {argument('force', True)}",
            )
        for left in [*output.glob("shard-*.jsonl"), file]:
            left.unlink()
    output.mkdir(parents=True, exist_ok=True)
    with new_file(file, force=True) as temporary:
        temporary.write_bytes(canonical_json(identity))


def _here(job: Job, shards: Sequence[Shard], output: Path) -> Iterator[None]:
    reader = job.reader() if shards else None
    for shard in shards:
        assert reader is not None
        answer_shard(job, reader, shard, output)
        yield


class _Worker:
    """An actor of Ray Data: it opens the bundle once, and answers shards."""

    def __init__(self, job: Job, output: Path) -> None:
        self._job, self._output = job, output
        self._reader: TextReader | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answer a shard; what went wrong is given back, for Ray would wrap it in an error of its own."""
        try:
            self._reader = self._reader or self._job.reader()
            answer_shard(self._job, self._reader, row["item"], self._output)
        except AdapterExportError as error:
            return {"error": type(error).__name__, **{name: getattr(error, name) for name in errors.FACTS}}
        return {"error": None, **dict.fromkeys(errors.FACTS)}


def _by_ray(job: Job, shards: Sequence[Shard], output: Path, address: str, workers: int | None) -> Iterator[None]:
    if not shards:
        return
    accelerators = int(job.provider == "cuda")
    with RayWorkers(address, workers, job.threads, accelerators) as pool:
        import ray.data  # noqa: PLC0415 - an extra

        ray.data.DataContext.get_current().enable_progress_bars = False
        done = ray.data.from_items([{"item": shard} for shard in shards], override_num_blocks=len(shards)).map(
            _Worker,  # type: ignore[arg-type]  # Ray makes it, and calls what it made
            fn_constructor_args=(job, output.absolute()),
            concurrency=min(pool.count, len(shards)),
            num_cpus=job.threads,
            num_gpus=accelerators,
        )
        for row in done.iter_rows():
            kind = row.pop("error")
            if kind is not None:
                raise errors.again(getattr(errors, kind), row)
            yield
