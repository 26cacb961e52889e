"""Measure an adapter of a bundle on labelled rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.opening import base_for
from adapter_export.bases.prepared_base import model_of
from adapter_export.bundle.open_bundle import folder_of
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import UsageError
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
from adapter_export.plugins.lab.commands._contestants import contestants_of, task_of
from adapter_export.plugins.lab.commands._labelled import data_file, require_metrics, show_scores, write_page
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.words import argument, did_you_mean, quoted

if TYPE_CHECKING:
    from adapter_export.format.manifest import Manifest
    from adapter_export.format.tabular.eval_data import DataOptions, EvalData
    from adapter_export.graph.tasks import Task
    from adapter_export.plugins.lab.evaluation import Evaluation
    from adapter_export.runtime import Bundle


def evaluate(
    bundle: Bundle | Address,
    data: Annotated[Address, LABELLED_DATA],
    *,
    adapter: Annotated[
        str | None, Option("Adapter to evaluate; `base` for the base head. Default: the only adapter.", "NAME")
    ] = None,
    text: Annotated[str, TEXT] = "text",
    pair: Annotated[str | None, PAIR] = None,
    negative: Annotated[Sequence[str], NEGATIVE] = (),
    label: Annotated[str | None, LABEL] = None,
    start: Annotated[str | None, START] = None,
    group: Annotated[str | None, GROUP] = None,
    delimiter: Annotated[str | None, DELIMITER] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    skip_incomplete: Annotated[bool, SKIP_INCOMPLETE] = False,
    slices: Annotated[str | None, Option("Also report scores per value of this column.", "COLUMN")] = None,
    dimensions: Annotated[int | None, DIMENSIONS] = None,
    limit: Annotated[int | None, Option("Answer a random sample of this many rows.", "N", least=1)] = None,
    stop: Annotated[
        Sequence[str], Option("End an answer before this string (language models). Repeatable.", "TEXT")
    ] = (),
    gate: Annotated[
        Mapping[str, float] | Sequence[str],
        Option("Minimum value of a metric (maximum if lower is better). Repeatable.", "METRIC=N"),
    ] = (),
    training_data: Annotated[
        Address | None,
        Option("Rows of a baseline: a logistic regression on the base.", "FILE"),
    ] = None,
    allow_training_rows: Annotated[bool, "Allow gates on rows that the adapter was trained on."] = False,
    against: Annotated[
        Base | Address | None,
        Option("The model that the bundle was built from; it answers the same rows.", "MODEL"),
    ] = None,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    report: Annotated[PathLike | None, Option("Write a self-contained HTML page.", "FILE")] = None,
    resamples: Annotated[int, Option("Bootstrap resamples for the intervals; 0 for none.", "N", least=0)] = 1000,
    seed: Annotated[int, Option("Random seed of the bootstrap.", "N", least=0)] = 0,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Measure a bundle's exported graph on labelled rows, in ONNX Runtime.

    The metrics are those of the adapter's task, with 95 % intervals: accuracy and macro-F1 of classes, F1 and average
    precision of sets of labels, F1 of entities, exact match and F1 of answers in a text, correlations of numbers, MRR
    and NDCG of rankings, Spearman's correlation of the cosines of pairs with a label, and for pairs without one NDCG,
    MRR and recall, as each text ranks all others of `--pair` and `--negative`. A language model has the perplexity of
    texts, or of the answers in `--pair`, which it also writes: exact match. Rows are read as `train` reads them, and
    are tokenized as the bundle records. If training recorded scores for this same file, they are compared. A warning
    names rows that the adapter was trained or validated on.

    Args:
        bundle: the bundle, or its folder.
        data: labelled rows: csv, tsv, jsonl or Parquet; images and audio as `train` reads them; of a language model
            texts, prompts with answers, or a `.txt` file with a text in each line.
        gate: bound per metric, also as strings such as `accuracy=0.92`.
        training_data: rows that the adapter was trained on, for a baseline without it.
        allow_training_rows: allow gates on training rows.
        against: the model that the bundle was built from, to answer the same rows.
        site_map: the sites of that model.
        trust_pickle: load that model even if it could run code.
        force: replace the file at `report`.
        reporter: receives the number of rows that are answered.

    Returns:
        The scores. A missed gate raises no error; call `raise_for_failure()` for that.

    Raises:
        UsageError: arguments exclude each other, or name something unknown; its subclass `MissingExtraError`: a
            metric library is missing.
        InputError: the bundle, the model or the data cannot be used.
        OutputExistsError, WriteError: the page cannot be written.
    """
    output = None if report is None else Output(Path(report), force)
    file = data_file(data, output, reporter)
    from adapter_export.format.manifest_json import read_manifest
    from adapter_export.format.tabular.eval_data import DataOptions
    from adapter_export.format.tabular.labelled import Columns
    from adapter_export.format.tabular.table_files import TableFormat

    columns = Columns(text, pair, label, start, TableFormat(delimiter, encoding), tuple(negative))
    options = DataOptions(columns, group, skip_incomplete, limit, slices, dimensions)
    folder = folder_of(bundle, reporter)
    manifest = read_manifest(folder)
    chosen, gates = _chosen(manifest, adapter), _bounds(gate)
    of_head = next((record.task is not None for record in manifest.adapters if record.name == chosen), False)
    writes = not of_head and _writes(manifest)
    if stop and not writes:
        raise UsageError("only language models write texts that end", where=argument("stop"), fix="leave it out")
    task = None if writes else task_of(manifest, str(chosen), folder)
    rows = options.read_texts(file) if task is None else options.read(file, task)
    training = None
    if training_data is not None:
        training = _training_rows(replace(options, limit=None, slices=None), training_data, task, output, reporter)
    if task is not None:
        rows.check_pairs(task, str(chosen))
        rows.check_labels(task)
    elif against is not None:
        fix = "leave it out; `check` compares the logits of a language model with those of its model"
        raise UsageError("is for adapters with a head", where=argument("against"), fix=fix)
    require_metrics("evaluate")
    from adapter_export.bundle.bundle_reader import OpenedBundle
    from adapter_export.plugins.lab.contest import ReferenceContestant, measure
    from adapter_export.plugins.lab.evaluation import check_options, evaluation, evaluation_of_texts, metrics_of_rows
    from adapter_export.plugins.lab.evaluation_page import page
    from adapter_export.plugins.lab.language import measure_texts
    from adapter_export.plugins.lab.scores import Resampling

    opened, resampling = OpenedBundle.open(folder), Resampling(resamples, seed)
    check_options(rows, metrics_of_rows(rows, task), gates)
    if task is None:
        texts = measure_texts(opened, chosen, rows, stop, reporter)
        outcome = evaluation_of_texts(opened, texts, rows, resampling, gates, allow_training_rows=allow_training_rows)
    else:
        (contestant,) = contestants_of(opened, [str(chosen)], str(opened.folder))
        contestants = [contestant]
        if against is not None:
            model = base_for(against, OpenOptions(site_map, trust_pickle), reporter)
            runner = model_of(opened.manifest, model).runner(allow_mismatch=True)
            contestants.append(
                ReferenceContestant(
                    runner.description, contestant.source, opened, contestant.adapter, contestant.reader, runner
                )
            )
        outcome = evaluation(
            measure(contestants, rows, reporter),
            rows,
            resampling,
            gates,
            training=training,
            allow_training_rows=allow_training_rows,
            reporter=reporter,
        )
    write_page(output, lambda: page(outcome))
    return outcome


def _training_rows(
    options: DataOptions, data: Address, task: Task | None, output: Output | None, reporter: Reporter
) -> EvalData:
    """Read the rows of a logistic regression; UsageError for a task that has none."""
    if task is None or not (task.kind.one_label and task.kind.pools):
        what = "a logistic regression needs a task with one label per row"
        raise UsageError(what, where=argument("training_data"), fix="leave it out")
    rows = options.read(data_file(data, output, reporter), task)
    rows.check_labels(task)
    return rows


def _writes(manifest: Manifest) -> bool:
    """Return whether a bundle generates text."""
    return any(record.role == "cache" for record in manifest.inputs)


def _chosen(manifest: Manifest, requested: str | None) -> str | None:
    """Return the adapter to evaluate; `None` is the base of a bundle that generates text."""
    from adapter_export.graph.tasks.asked import named_adapter

    tasks = {record.name: record.task is not None for record in manifest.adapters}
    writes, only = _writes(manifest), next(iter(tasks)) if len(tasks) == 1 else None
    answering = {name: has_task or writes for name, has_task in tasks.items()}
    chosen = named_adapter(requested or only, answering, manifest.head) or manifest.head
    if chosen is None and writes:
        return None
    if chosen is None:
        fix: str = "name one: " + argument("adapter", words="NAME")
        raise UsageError("the base has no head that answers", found=f"adapters {quoted(tasks)}", fix=fix)
    if chosen not in tasks:
        where, known = argument("adapter"), f"one of {quoted(tasks)}"
        fix = did_you_mean(chosen, tasks, "choose one of these")
        raise UsageError("unknown adapter", where=where, found=f"`{chosen}`", expected=known, fix=fix)
    return chosen


def _bounds(gate: Mapping[str, float] | Sequence[str]) -> dict[str, float]:
    """Return the bound of each metric.

    Raises:
        UsageError: a string is not a gate, or a metric has two gates.
    """
    if isinstance(gate, Mapping):
        return dict(gate)
    gates: dict[str, float] = {}
    for text in gate:
        name, _, number = text.partition("=")
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if math.isnan(bound) or not name.strip():
            expected = "such as `accuracy=0.92`"
            raise UsageError("is not a gate", where=argument("gate"), found=f"`{text}`", expected=expected)
        if name.strip() in gates:
            raise UsageError("a metric has two gates", where=argument("gate"), found=f"`{name.strip()}`")
        gates[name.strip()] = bound
    return gates


def _show(evaluation: Evaluation, screen: Screen) -> None:
    show_scores(evaluation, screen)
    _show_faults(evaluation, screen)


def _show_faults(evaluation: Evaluation, screen: Screen) -> None:
    for fault in evaluation.faults():
        screen.fail(fault.sentence("shell"))


def _document(evaluation: Evaluation, screen: Screen) -> Mapping[str, object]:
    _show_faults(evaluation, screen)
    return evaluation.to_json()


COMMAND = Command(
    evaluate,
    _show,
    document=_document,
    passed=lambda found: found.passed,
    exit_code=lambda found: found.exit_code,
    exit_codes="0 measured, 1 a gate is missed or the training record is contradicted, 2 wrong call, 3 the bundle, the "
    "model or the data cannot be used, 6 a gate on training rows",
    examples=(
        "adapter-export evaluate bundle --data test.tsv --text text --label label",
        "adapter-export evaluate bundle --adapter trec --data test.tsv --gate accuracy=0.92 --slices language",
        "adapter-export evaluate bundle --data sts.jsonl --text first --pair second --label score",
        "adapter-export evaluate bundle --data pairs.jsonl --text query --pair passage --dimensions 128",
        "adapter-export evaluate bundle --data test.tsv --against model.pt --report evaluation.html",
    ),
    sections={
        "data": ("start", "group", "negative", "stop", "delimiter", "encoding", "skip_incomplete"),
        "intervals": ("resamples", "seed"),
    },
)
