"""Answer tables of any length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike, locate
from adapter_export.bases.kinds import at_least_1
from adapter_export.bundle.open_bundle import folder_of
from adapter_export.commands.bundles.run import (
    LongTexts,
    MemberWeights,
    MixedRows,
    PairColumn,
    Provider,
    Side,
    Strength,
    Stride,
    TextColumn,
    TokenBudget,
)
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import UsageError
from adapter_export.extras import require
from adapter_export.option import DELIMITER, ENCODING, Force, Option
from adapter_export.reporting import SILENT, Reporter
from adapter_export.tables import number_of
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.plugins.tables.job import Answered
    from adapter_export.runtime import Bundle


def run_many(
    bundle: Bundle | Address,
    data: Address,
    output: Annotated[PathLike, Option("Folder for the answers, one file per shard.", "DIR", "-o")],
    *,
    adapter: Annotated[
        str | None,
        Option("Adapter for all rows; `base` for the base without adapters. Required if adapters have tasks.", "NAME"),
    ] = None,
    adapter_column: Annotated[
        str | None, Option("Column with the adapter of each row, `base` or `-` for the base.", "NAME")
    ] = None,
    strength: Strength = None,
    side: Side = None,
    weights: MemberWeights = None,
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    delimiter: Annotated[str | None, DELIMITER] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    long_texts: LongTexts = "cut",
    stride: Stride = None,
    token_budget: TokenBudget = None,
    allow_mixed_rows: MixedRows = False,
    shard_rows: Annotated[int, Option("Rows per shard.", "N", least=1)] = 16_384,
    ray: Annotated[str | None, Option("Compute with Ray Data: `auto`, `local`, or an address.", "ADDRESS")] = None,
    workers: Annotated[int | None, Option("Maximum concurrent shards on Ray.", "N", least=1)] = None,
    provider: Provider = "cpu",
    threads: Annotated[int, Option("Threads per operation, and processors per worker.", least=1)] = 1,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Answered:
    """Answer every row of DATA, a table of any length, in shards that are written when complete.

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
    from adapter_export.format.manifest_json import MANIFEST_FILE, read_manifest
    from adapter_export.format.tabular.table_files import TableFormat
    from adapter_export.format.tabular.table_rows import Columns
    from adapter_export.graph.tasks.asked import named_adapter
    from adapter_export.plugins.tables.job import Choice, Job, run_job
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
            long_texts or "cut",
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


def _show(answered: Answered, screen: Screen) -> None:
    screen.report(
        f"wrote {answered.folder}: {number_of(answered.shards, 'shard')} ({answered.reused:,} already complete)"
    )


def _document(answered: Answered, _: Screen) -> Mapping[str, object]:
    return {"folder": str(answered.folder), "shards": answered.shards, "reused": answered.reused}


COMMAND: Command[Answered] = Command(
    run_many,
    _show,
    document=_document,
    examples=(
        "adapter-export run-many bundle reviews.parquet -o answers --adapter trec",
        "adapter-export run-many bundle requests.jsonl -o answers --adapter-column adapter --ray auto",
    ),
    sections={
        "rows": ("text_column", "pair_column", "delimiter", "encoding", "long_texts", "stride", "side"),
        "adapters": ("adapter", "adapter_column", "strength", "weights"),
        "calls": ("token_budget", "allow_mixed_rows", "provider", "threads", "shard_rows", "ray", "workers"),
    },
    common=("adapter", "text_column"),
)
