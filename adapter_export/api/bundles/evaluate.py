"""Scores of an adapter of a bundle on labelled rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.api.bundles.bundles import folder_of, model_of
from adapter_export.api.bundles.contestants import contestants_of
from adapter_export.api.models.base import Base, PathLike, require
from adapter_export.errors import DataError, UsageError, argument, quoted
from adapter_export.option import GROUP, LABEL, PAIR, SKIP_INCOMPLETE, START, TEXT, Option
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from adapter_export.analysis.evaluation import Evaluation
    from adapter_export.bundle.opened import OpenedBundle
    from adapter_export.runtime import Bundle


def evaluate(
    bundle: Bundle | PathLike,
    data: PathLike,
    *,
    adapter: Annotated[
        str | None, Option("Adapter to evaluate. Default: the only adapter, or the base head.", "NAME")
    ] = None,
    text: Annotated[str, TEXT] = "text",
    pair: Annotated[str | None, PAIR] = None,
    label: Annotated[str, LABEL] = "label",
    start: Annotated[str | None, START] = None,
    group: Annotated[str | None, GROUP] = None,
    skip_incomplete: Annotated[bool, SKIP_INCOMPLETE] = False,
    slices: Annotated[str | None, Option("Also report scores for each value of this column.", "COLUMN")] = None,
    limit: Annotated[int | None, Option("Number of rows to answer, from the first.", "N", least=1)] = None,
    gate: Mapping[str, float] | None = None,
    against: Base | PathLike | None = None,
    report: Annotated[PathLike | None, Option("Write a self-contained HTML page.", "FILE")] = None,
    resamples: Annotated[int, Option("Bootstrap draws for the intervals; 0 for none.", "N", least=0)] = 1000,
    seed: Annotated[int, Option("Random seed of the draws.", "N", least=0)] = 0,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Measure the exported graph of a bundle, in ONNX Runtime, on labelled rows.

    The rows are read as training reads them, and become tokens by the bundle's own record. Scores have 95 % intervals
    (percentile bootstrap over rows). If training recorded scores for this very file, they are compared.

    Args:
        bundle: the bundle, or its folder.
        data: labelled rows: csv, tsv or jsonl in UTF-8; images and audio as `train` reads them.
        gate: for some metrics the minimum; the maximum where less is better.
        against: the model that the bundle was built from, to answer the same rows.
        force: replace the file at `report`.
        reporter: receives the number of rows that are answered.

    Returns:
        The scores. A missed gate is no error: `raise_for_failure()` makes it one.

    Raises:
        UsageError: arguments do not go together, or name something that does not exist; `MissingExtraError` is a
            kind of it.
        InputError: the bundle, the model or the data cannot be used.
        OutputExistsError, WriteError: the page cannot be written.
    """
    output = None if report is None else Output(Path(report), force)
    check_call("evaluate", Path(data), output)
    from adapter_export.analysis.contest import ReferenceContestant, measure
    from adapter_export.analysis.eval_rows import DataOptions
    from adapter_export.analysis.evaluation import check_options, evaluation
    from adapter_export.analysis.evaluation_page import page
    from adapter_export.analysis.scores import Resampling
    from adapter_export.bundle.opened import OpenedBundle
    from adapter_export.format.labelled import Columns

    options = DataOptions(Columns(text, pair, label, start), group, skip_incomplete, limit, slices)
    opened = OpenedBundle.open(folder_of(bundle))
    (own,) = contestants_of(opened, [_chosen(opened, adapter)], str(opened.folder))
    contestants, gates = [own], dict(gate or {})
    if against is not None:
        runner = model_of(opened.manifest, against).runner(allow_mismatch=True)
        contestants.append(ReferenceContestant(runner.description, own.source, opened, own.adapter, own.reader, runner))
    rows = options.read(Path(data), own.task)
    check_options(rows, own.task, gates)
    found = evaluation(measure(contestants, rows, reporter), rows, Resampling(resamples, seed), gates)
    write_page(output, lambda: page(found))
    return found


def check_call(verb: str, data: Path, report: Output | None) -> None:
    """Refuse a call that misses a library or its data, or whose page cannot be written.

    Raises:
        MissingExtraError: a library of metrics is not installed.
        OutputExistsError, WriteError: the page cannot be written.
        DataError: the data do not exist.
    """
    for library in ("sklearn", "scipy", "seqeval"):
        require(library, "evaluate", f"`{verb}`")
    if report is not None:
        report.ensure_writable()
    if not data.exists():
        raise DataError("is not there", where=data, expected="labelled texts", fix="check the path")


def write_page(report: Output | None, page: Callable[[], str]) -> None:
    """Write a page, if one is wanted."""
    if report is not None:
        with report.file() as temporary:
            temporary.write_text(page(), encoding="utf-8")


def _chosen(bundle: OpenedBundle, given: str | None) -> str:
    """Return the adapter to evaluate."""
    names = [record.name for record in bundle.manifest.adapters]
    if given is not None and given not in names:
        known = quoted(names)
        raise UsageError("no such adapter", where=argument("adapter"), found=f"`{given}`", expected=f"one of {known}")
    chosen = given or (names[0] if len(names) == 1 else bundle.manifest.head)
    if chosen is None:
        raise UsageError("there are several adapters", found=quoted(names), fix=f"name one: {argument('adapter')}")
    return chosen
