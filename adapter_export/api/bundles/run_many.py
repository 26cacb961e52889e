"""Answer tables of any length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapter_export.api.adapters.kinds import at_least_1
from adapter_export.api.bundles.bundles import folder_of
from adapter_export.api.models.base import Address, PathLike, require
from adapter_export.errors import UsageError, argument
from adapter_export.hub.address import locate
from adapter_export.providers import ProviderName
from adapter_export.reporting import SILENT, Reporter

if TYPE_CHECKING:
    from adapter_export.batch.job import Answered
    from adapter_export.runtime import Bundle


def run_many(
    bundle: Bundle | Address,
    data: Address,
    output: PathLike,
    *,
    adapter: str | None = None,
    adapter_column: str | None = None,
    strength: float | None = None,
    side: Literal["query", "document"] | None = None,
    weights: Mapping[str, float] | None = None,
    text_column: str = "text",
    pair_column: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    long_texts: Literal["cut", "refuse", "windows"] = "cut",
    stride: int | None = None,
    token_budget: int | None = None,
    allow_mixed_rows: bool = False,
    shard_rows: int = 16_384,
    ray: str | None = None,
    workers: int | None = None,
    provider: ProviderName = "cpu",
    threads: int = 1,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> Answered:
    """Answer every row of a table of any length, in shards that are written when complete.

    ::

        done = ae.run_many("bundle", "reviews.parquet", "answers", adapter="sentiment", ray="auto")

    Repeat the same call to resume an interrupted run. Shards are deterministic on processors of one kind. If
    `shard_rows` is a multiple of 2,048, they equal the shards of `adapter-export run --many` for the same file.

    Args:
        bundle: the bundle, or its folder; on a cluster, a path that all machines can read.
        data: a Parquet, JSON lines, csv or tsv table, a `.txt` file with one text per line, or a folder of such files;
            on a cluster, a path that all machines can read.
        output: the folder for `shard-00000.jsonl` and so on, with one document per row; on a cluster, shared.
        adapter: adapter of all rows, or `base`; required if no column names one and adapters have tasks.
        adapter_column: column with the adapter of each row.
        strength: as for `Session.run`, for all rows.
        side: side of all texts, if their adapter has prefixes for queries and documents.
        weights: as for `Session.run`, for all rows, whose adapter is a weighted fusion.
        text_column: column with the texts.
        pair_column: column with the second texts of pairs, or with lists of choices.
        delimiter: delimiter of a csv file; detected by default.
        encoding: encoding of text files; default: UTF-8, detected in csv, tsv and `.txt` files.
        long_texts: as for `TextReader.answer`.
        stride: as for `TextReader.answer`.
        token_budget: as for `Session.run_many`.
        allow_mixed_rows: as for `Session.run`.
        shard_rows: rows per shard.
        ray: compute with Ray Data on a cluster: `auto`, `local`, or its address.
        workers: concurrent shards on Ray; default: as many as fit on the cluster.
        provider: execution provider.
        threads: threads per operation, and processors per worker.
        force: whether to replace the answers of another job.
        reporter: receives the number of answered shards.

    Returns:
        The folder, the number of shards, and the number of shards that already existed.

    Raises:
        UsageError: arguments conflict, or no cluster responds.
        MissingExtraError: Ray or pyarrow is not installed.
        OutputExistsError, FileError: the folder contains other files, or the answers of another job.
        DataError, RequestError: a row is malformed, or does not fit its adapter; complete shards are kept.
    """
    from adapter_export.batch.job import Choice, Job, run_job
    from adapter_export.batch.table_rows import Columns
    from adapter_export.format.manifest_json import MANIFEST_FILE, read_manifest
    from adapter_export.format.tabular.table_files import TableFormat
    from adapter_export.graph.tasks.asked import named_adapter
    from adapter_export.runtime.answerer import Reading
    from adapter_export.safe_io.regular_files import sha256_of

    if adapter is not None and adapter_column is not None:
        raise UsageError(argument("adapter") + " and " + argument("adapter_column") + " exclude each other")
    if workers is not None and ray is None:
        raise UsageError(argument("workers") + " requires " + argument("ray"))
    if ray is not None:
        require("ray", "ray", argument("ray"))
        require("pandas", "ray", argument("ray"))
    folder = folder_of(bundle, reporter).absolute()
    if adapter_column is None:
        manifest = read_manifest(folder)
        tasks = {record.name: record.task is not None for record in manifest.adapters}
        adapter = named_adapter(adapter, tasks, manifest.head)
    job = Job(
        bundle=str(folder),
        digest=sha256_of(folder / MANIFEST_FILE),
        columns=Columns(text_column, pair_column, adapter_column, TableFormat(delimiter, encoding)),
        choice=Choice(adapter, 1.0 if strength is None else strength, weights, side),
        reading=Reading(
            long_texts,
            stride,
            None if token_budget is None else at_least_1("token_budget", token_budget),
            allow_mixed_rows,
        ),
        provider=provider,
        threads=at_least_1("threads", threads),
    )
    return run_job(
        job,
        locate(data, "table", reporter).path.absolute(),
        Path(output),
        shard_rows=at_least_1("shard_rows", shard_rows),
        ray=ray,
        workers=workers if workers is None else at_least_1("workers", workers),
        reporter=reporter,
        force=force,
    )
