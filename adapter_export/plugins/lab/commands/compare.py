"""Compare adapters, bundles and models on the same labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.opening import base_for
from adapter_export.bundle.open_bundle import AllowBaseMismatch
from adapter_export.commands.command import Command
from adapter_export.format.precision import PRECISION_NAMES
from adapter_export.option import (
    DELIMITER,
    DIMENSIONS,
    ENCODING,
    GROUP,
    LABEL,
    LABELLED_DATA,
    NEGATIVE,
    PAIR,
    SITE_MAP,
    SKIP_INCOMPLETE,
    START,
    TEXT,
    TRUST_PICKLE,
    Force,
    Option,
)
from adapter_export.plugins.lab.commands._contestants import Contestants, located, task_before_opening
from adapter_export.plugins.lab.commands._labelled import data_file, require_metrics, show_scores, write_page
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.temporary import temporary_folder

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.plugins.lab.comparison import Comparison
    from adapter_export.runtime import Bundle


def compare(
    *contestants: Bundle | Base | Adapter | Address,
    data: Annotated[Address, LABELLED_DATA],
    base: Annotated[Base | Address | None, Option("Base model of the adapters.", "MODEL")] = None,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    only: Annotated[Sequence[str], Option("Compare only this adapter. Repeatable.", "ADAPTER")] = (),
    precisions: Annotated[
        tuple[str, ...],
        f"Precisions to build adapters and models in: {', '.join(PRECISION_NAMES)}. A bundle keeps its own.",
    ] = ("fp32",),
    allow_base_mismatch: AllowBaseMismatch = False,
    text: Annotated[str, TEXT] = "text",
    pair: Annotated[str | None, PAIR] = None,
    negative: Annotated[Sequence[str], NEGATIVE] = (),
    label: Annotated[str | None, LABEL] = None,
    start: Annotated[str | None, START] = None,
    group: Annotated[str | None, GROUP] = None,
    delimiter: Annotated[str | None, DELIMITER] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    skip_incomplete: Annotated[bool, SKIP_INCOMPLETE] = False,
    dimensions: Annotated[int | None, DIMENSIONS] = None,
    limit: Annotated[int | None, Option("Answer a random sample of this many rows.", "N", least=1)] = None,
    rounds: Annotated[int, Option("Rounds of timed calls; 0 measures no latency.", "N", least=0)] = 15,
    resamples: Annotated[int, Option("Bootstrap resamples for the intervals; 0 for none.", "N", least=0)] = 1000,
    seed: Annotated[int, Option("Random seed of the bootstrap.", "N", least=0)] = 0,
    report: Annotated[PathLike | None, Option("Write a self-contained HTML page.", "FILE")] = None,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Comparison:
    """Compare adapters, bundles and models on the same rows, in ONNX Runtime.

    CONTESTANTS are bundles (all of their adapters), adapter folders (which need a base), and models with a head.
    Adapters and models are built as temporary bundles; adapters of one topology share one.

    Scores have 95 % intervals. Differences are tested on the same rows: exact McNemar if each row is right or wrong,
    otherwise paired permutation or bootstrap, with Holm's correction for more than two contestants. The report adds
    agreement, the rows on which contestants differ, sizes, latency and the attention weights of fusions.

    Args:
        contestants: bundles, adapters, models, or their folders and files. Equal names are made unique by their
            paths.
        data: labelled rows, as `evaluate` reads them.
        base: the adapters' base model.
        site_map: the sites of that model.
        trust_pickle: load that model even if it could run code.
        force: replace the file at `report`.
        reporter: receives each step.

    Raises:
        UsageError: there are fewer than two contestants, tasks differ, or arguments exclude each other.
        InputError: a contestant or the data cannot be used; its subclass `DataError` names an adapter that lacks a
            label.
        OutputExistsError, WriteError: the page cannot be written.
    """
    output = None if report is None else Output(Path(report), force)
    file = data_file(data, output, reporter)
    from adapter_export.format.tabular.eval_data import DataOptions
    from adapter_export.format.tabular.labelled import Columns
    from adapter_export.format.tabular.table_files import TableFormat

    columns = Columns(text, pair, label, start, TableFormat(delimiter, encoding), tuple(negative))
    options = DataOptions(columns, group, skip_incomplete, limit, dimensions=dimensions)
    contestants = tuple(located(one, reporter) for one in contestants)
    early = task_before_opening(contestants, only)
    rows = None if early is None else options.read(file, early)
    require_metrics("compare")
    from adapter_export.plugins.lab.comparison import compare_measured
    from adapter_export.plugins.lab.contest import common_task, measure
    from adapter_export.plugins.lab.evaluation_page import comparison_page
    from adapter_export.plugins.lab.scores import Resampling

    with temporary_folder() as folder:
        opened = None if base is None else base_for(base, OpenOptions(site_map, trust_pickle), reporter)
        maker = Contestants(folder, opened, precisions, allow_base_mismatch, only, reporter)
        own = maker.open(contestants)
        task = common_task(own)
        rows = rows or options.read(file, task)
        measured = measure(own, rows, reporter)
        found = compare_measured(
            measured, rows, Resampling(resamples, seed), rounds=rounds, notes=maker.notes, reporter=reporter
        )
    write_page(output, lambda: comparison_page(found))
    return found


COMMAND = Command(
    compare,
    show_scores,
    exit_codes="0 compared, 2 wrong call, 3 a contestant or the data cannot be used",
    examples=(
        "adapter-export compare bundle --only trec --only trec-small --data test.tsv --text text --label label",
        "adapter-export compare bundle-fp32 bundle-int8 --only trec --data test.tsv --report comparison.html",
        "adapter-export compare a b student.pt --base model.pt --precisions fp32,int8 --data test.tsv",
    ),
    sections={
        "data": ("start", "group", "negative", "delimiter", "encoding", "skip_incomplete"),
        "intervals": ("resamples", "seed"),
    },
)
