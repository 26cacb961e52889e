"""Answers to tables of any length, in shards that are written atomically, in this process or by Ray Data.

Shards are deterministic: the calls of a shard depend only on its rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from adapter_export import errors
from adapter_export.errors import AdapterExportError, DataError, FileError, OutputExistsError
from adapter_export.format.files import canonical_json
from adapter_export.format.tabular.encodings import known_encoding
from adapter_export.format.tabular.parquet_files import PARQUET, count_of_parquet, parquet_rows
from adapter_export.format.tabular.table_faults import TableFaults
from adapter_export.format.tabular.table_files import json_object, text_lines
from adapter_export.format.tabular.table_rows import (
    JSON_LINES,
    SUFFIXES,
    Columns,
    file_rows,
)
from adapter_export.providers import PROVIDERS, ProviderName
from adapter_export.reporting import Reporter
from adapter_export.runtime import Bundle
from adapter_export.runtime.answerer import Answerer, Reading, Row
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.output import Output, hold_lock
from adapter_export.safe_io.regular_files import open_regular, sha256_of, unreadable
from adapter_export.safe_io.run_workers import RayWorkers
from adapter_export.tables import Described
from adapter_export.text import TextSide
from adapter_export.version import __version__
from adapter_export.words import argument, quoted

_JOB_FILE = "job.json"


@dataclass(frozen=True)
class Shard:
    """A range of rows of a file.

    Attributes:
        number: index among all shards, from 0.
        path: of the file.
        state: size of the file in bytes and its modification time in ns, when the shards were planned.
        start: first byte of JSON lines, or first row of another file, from 0.
        end: first byte or row after it.
        first: number of its first line or row, from 1.
    """

    number: int
    path: str
    state: tuple[int, int]
    start: int
    end: int
    first: int

    @property
    def name(self) -> str:
        """Name of the file with its answers."""
        return f"shard-{self.number:05d}.jsonl"


def table_files(data: Path) -> list[Path]:
    """Return a file, or the files of a folder in the order of their names.

    Raises:
        FileError: the folder is empty.
        DataError: a file of the folder has no suffix of a table.
    """
    if not data.is_dir():
        return [data]
    files = sorted(path for path in data.iterdir() if not path.name.startswith((".", "_")))
    if not files:
        raise FileError("has no files", where=data, expected=f"tables: {', '.join(SUFFIXES)}")
    for path in files:
        if path.suffix.lower() not in SUFFIXES:
            expected = f"a name that ends with {', '.join(SUFFIXES)}"
            raise DataError("has no suffix of a table", where=path, expected=expected, fix="remove it from the folder")
    return files


def shards_of(files: Sequence[Path], columns: Columns, rows: int) -> tuple[list[Shard], list[str], list[str]]:
    """Return the shards, of `rows` rows or the rest of a file, the SHA-256 of each file, and notes on the files.

    Raises:
        FileError: a file cannot be read.
        DataError: it is not a table, or has an empty line between rows.
        MissingExtraError: pyarrow is not installed.
    """
    shards, digests, notes = list[Shard](), list[str](), list[str]()
    for path in files:
        if _is_cut_by_bytes(path, columns):
            state, digest, marks = _scan(path, rows)
            digests.append(digest)
        else:
            state = _state(path)
            digests.append(sha256_of(path))
            if path.suffix.lower() in PARQUET:
                total = count_of_parquet(path)
            else:
                read = file_rows(path, columns)
                notes += read.notes
                total = sum(1 for _ in read.rows)
            marks = [(first, first + 1) for first in [*range(0, total, rows), total]]
        for (start, first), (end, _) in pairwise(marks):
            shards.append(Shard(len(shards), str(path), state, start, end, first))
    return shards, digests, notes


def _is_cut_by_bytes(path: Path, columns: Columns) -> bool:
    """Return whether shards of a file are byte ranges, as for JSON lines in UTF-8."""
    encoding = columns.form.encoding
    return path.suffix.lower() in JSON_LINES and (encoding is None or known_encoding(encoding) == "utf-8-sig")


def read_shard(shard: Shard, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a shard.

    Raises:
        FileError: the file cannot be read, or changed after the shards were planned.
        DataError: a row is malformed.
    """
    path = Path(shard.path)
    if _state(path) != shard.state:
        raise FileError("changed while it was processed", where=path, fix="pass another output folder")
    if path.suffix.lower() in PARQUET:
        for number, cells in enumerate(parquet_rows(path, shard.start, shard.end, columns.names), shard.first):
            yield columns.row(cells, f"{path}, line {number}")
        return
    if not _is_cut_by_bytes(path, columns):  # read from the beginning, since a quoted csv cell may contain newlines
        yield from islice(file_rows(path, columns).rows, shard.start, shard.end)
        return
    with open_regular(path) as file:
        try:
            file.seek(shard.start)
            data = file.read(shard.end - shard.start)
        except (OSError, MemoryError) as error:
            raise unreadable(path, error) from error
    faults = TableFaults(path)
    for number, line in enumerate(text_lines(data, path, "utf-8", shard.first)[0], shard.first):
        row = None
        if line.strip():  # empty lines are only at the end of the file
            with faults.of_line(number):
                row = columns.row(json_object(line, path, number), f"{path}, line {number}")
        if row is not None:
            yield row
    faults.check()


def _state(path: Path) -> tuple[int, int]:
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _scan(path: Path, rows: int) -> tuple[tuple[int, int], str, list[tuple[int, int]]]:
    """Return the state of a file, its SHA-256, and the offset and line of every `rows`-th row and of the end."""
    digest, marks, at, number, row = hashlib.sha256(), list[tuple[int, int]](), 0, 0, 0
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        try:
            empty = None
            for line in file:
                if line.strip() and empty is not None:
                    expected = "a row in each line"
                    raise DataError("is empty", where=f"{path}, line {empty}", expected=expected, fix="remove it")
                if line.strip():
                    if row % rows == 0:
                        marks.append((at, number + 1))
                    row += 1
                elif empty is None:
                    empty = number + 1
                digest.update(line)
                at, number = at + len(line), number + 1
        except (OSError, MemoryError) as error:
            raise unreadable(path, error) from error
    return (status.st_size, status.st_mtime_ns), digest.hexdigest(), [*marks, (at, number + 1)]


@dataclass(frozen=True)
class Choice:
    """Adapter, strength, weights and side of all rows; an adapter of `None` is the base or that of the column."""

    adapter: str | None = None
    strength: float = 1.0
    weights: Mapping[str, float] | None = None
    side: TextSide | None = None

    def of(self, row: Row) -> Row:
        """Return a row with these settings."""
        adapter = self.adapter if row.adapter is None else row.adapter
        return replace(row, adapter=adapter, strength=self.strength, weights=self.weights).on_side(self.side)


@dataclass(frozen=True)
class Job:
    """Settings of all shards.

    Attributes:
        bundle: folder of the bundle.
        digest: SHA-256 of its manifest, which every worker compares.
        columns: of the table.
        choice: adapter, strength, weights and side of all rows; an adapter in the table takes precedence.
        reading: options for reading and batching.
        provider: the provider that computes.
        threads: threads of one operation.
    """

    bundle: str
    digest: str
    columns: Columns
    choice: Choice
    reading: Reading
    provider: ProviderName
    threads: int

    def answerer(self) -> Answerer:
        """Open the bundle and return its answerer."""
        opened = Bundle.open(self.bundle, expect=self.digest)
        session = opened.session(provider=self.provider, threads=self.threads, on_demand=True)
        return Answerer(session, opened.texts(session), self.reading)


@dataclass(frozen=True, repr=False)
class Answered(Described):
    """A folder with answers.

    Attributes:
        folder: contains `shard-00000.jsonl` and so on, in the order of the rows, with one document per line.
        shards: number of shards.
        reused: number of shards from an earlier run.
    """

    folder: Path
    shards: int
    reused: int

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {"folder": self.folder, "shards": self.shards, "reused": self.reused}


def run_job(
    job: Job,
    data: Path,
    output: Path,
    *,
    shard_rows: int,
    ray: str | None,
    workers: int | None,
    reporter: Reporter,
    force: bool,
) -> Answered:
    """Answer every shard that has no answers yet.

    Raises:
        OutputExistsError, FileError: the folder contains other files or another job, or another process writes there.
        FileError, DataError: the table cannot be read, or a row is malformed; earlier shards keep their answers.
        RequestError: a text or an adapter does not fit.
        UsageError: the cluster does not exist.
    """
    _ensure_free(output)
    shards, digests, notes = shards_of(table_files(data), job.columns, shard_rows)
    for note in notes:
        reporter.warn(note)
    facts = {name: value for name, value in asdict(job).items() if name not in ("bundle", "choice", "reading")}
    facts |= {**asdict(job.choice), **asdict(job.reading)}
    identity = {**facts, "data": digests, "shard_rows": shard_rows, "version": __version__}
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(output):
        _claim(output, identity, force=force)
        left = [shard for shard in shards if not (output / shard.name).is_file()]
        reused = len(shards) - len(left)
        reporter.step("answering shards", reused, len(shards))
        done = _here(job, left, output) if ray is None else _by_ray(job, left, output, ray, workers)
        for count, _ in enumerate(done, reused + 1):
            reporter.step("answering shards", count, len(shards))
    return Answered(output, len(shards), reused)


def answer_shard(job: Job, answerer: Answerer, shard: Shard, output: Path) -> None:
    """Write the answers of a shard in order, or nothing if a row cannot be answered."""
    rows = map(job.choice.of, read_shard(shard, job.columns))
    with Output(output / shard.name, force=True).file() as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(row.json_line() for row in answerer.answer(rows))


def _ensure_free(output: Path) -> None:
    """Raise OutputExistsError unless the path is the folder of a job, empty or absent."""
    if output.exists() and not (output / _JOB_FILE).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise OutputExistsError(output)


def _claim(output: Path, identity: dict[str, Any], *, force: bool) -> None:
    """Create the folder of a job, or resume the same one."""
    file = output / _JOB_FILE
    _ensure_free(output)
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
                "contains the answers of another job",
                where=output,
                found=f"another {quoted(differing)}",
                fix="pass another folder, or " + argument("force", True),
            )
        # the shards first: a killed process must not leave some that seem to belong to the new job
        for left in [*output.glob("shard-*.jsonl"), file]:
            left.unlink()
    output.mkdir(parents=True, exist_ok=True)
    with Output(file, force=True).file() as temporary:
        temporary.write_bytes(canonical_json(identity))


def _here(job: Job, shards: Sequence[Shard], output: Path) -> Iterator[None]:
    answerer = job.answerer() if shards else None
    for shard in shards:
        assert answerer is not None
        answer_shard(job, answerer, shard, output)
        yield


class _Worker:
    """Actor of Ray Data that opens the bundle once and answers shards."""

    def __init__(self, job: Job, output: Path) -> None:
        self._job, self._output = job, output
        self._answerer: Answerer | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answer a shard; return an error as a row, since Ray would wrap the exception."""
        try:
            self._answerer = self._answerer or self._job.answerer()
            answer_shard(self._job, self._answerer, row["item"], self._output)
        except AdapterExportError as error:
            return {"error": type(error).__name__, **{name: getattr(error, name) for name in errors.FACTS}}
        return {"error": None, **dict.fromkeys(errors.FACTS)}


def _by_ray(job: Job, shards: Sequence[Shard], output: Path, address: str, workers: int | None) -> Iterator[None]:
    if not shards:
        return
    accelerators = int(PROVIDERS[job.provider].processor == "gpu")
    with RayWorkers(address, workers, job.threads, accelerators) as pool:
        import ray.data  # noqa: PLC0415 - an extra

        ray.data.DataContext.get_current().enable_progress_bars = False
        done = ray.data.from_items([{"item": shard} for shard in shards], override_num_blocks=len(shards)).map(
            _Worker,  # Ray instantiates it
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
