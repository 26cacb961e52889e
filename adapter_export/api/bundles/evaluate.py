"""How well an adapter of a bundle does on labelled texts, by the metrics of its task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.api.bundles.bundles import folder_of, model_of
from adapter_export.api.models.base import Base, PathLike, require
from adapter_export.errors import RequestError, UsageError, argument, quoted
from adapter_export.option import GROUP, LABEL, PAIR, SKIP_INCOMPLETE, START, TEXT, Option
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from adapter_export.analysis.evaluation import Evaluation
    from adapter_export.api.bundles.check import OnStep
    from adapter_export.bundle.opened import OpenedBundle
    from adapter_export.format.labelled import Columns, LabelledRow
    from adapter_export.graph.tasks import Task
    from adapter_export.runtime import Bundle
    from adapter_export.runtime.answerer import Reader

MEDIA = ("image", "audio")
"""The inputs of tasks that are files."""


def evaluate(
    bundle: Bundle | PathLike,
    data: PathLike,
    *,
    adapter: Annotated[str | None, Option("The adapter; if not given, the only one, or the base head.", "NAME")] = None,
    text: Annotated[str, TEXT] = "text",
    pair: Annotated[str | None, PAIR] = None,
    label: Annotated[str, LABEL] = "label",
    start: Annotated[str | None, START] = None,
    group: Annotated[str | None, GROUP] = None,
    skip_incomplete: Annotated[bool, SKIP_INCOMPLETE] = False,
    slices: Annotated[str | None, Option("Also give the scores for each value in this column.", "COLUMN")] = None,
    limit: Annotated[int | None, Option("Only the first rows.", "N", least=1)] = None,
    gate: Mapping[str, float] | None = None,
    against: Base | PathLike | None = None,
    page: Annotated[PathLike | None, Option("Write a page of HTML, complete in itself.", "FILE")] = None,
    resamples: Annotated[int, Option("How often rows are drawn for the intervals; 0 for none.", "N", least=0)] = 1000,
    seed: Annotated[int, Option("Of these draws.", "N", least=0)] = 0,
    force: bool = False,
    on_step: OnStep | None = None,
) -> Evaluation:
    """Measure the graph that is shipped, in ONNX Runtime, on labelled texts.

    The rows are read as training reads them, and become tokens by the bundle's own record. Scores have intervals of
    95 % (percentile bootstrap over rows). Where the file is one that the record of training was measured on, the
    record is held to the scores.

    Args:
        bundle: the bundle, or its folder.
        data: labelled texts: csv, tsv or jsonl in UTF-8; images and audio as `train` reads them.
        gate: for some metrics the least that they must be; the most, where less is better.
        against: the model that the bundle was built from, to answer the same rows.
        force: replace what is at `page`.
        on_step: is told of the texts that are answered.

    Returns:
        What was found. A gate that is missed is no error: `raise_for_failure()` makes it one.

    Raises:
        UsageError: arguments do not go together, or name what is not there; `MissingExtraError` is a kind of it.
        InputError: the bundle, the model or the data cannot be used.
        OutputExistsError, WriteError: the page cannot be written.
    """
    for library in ("sklearn", "scipy", "seqeval"):
        require(library, "evaluate", "`evaluate`")
    from adapter_export.analysis.eval_rows import ask, by_bundle, by_model
    from adapter_export.analysis.evaluation import Setting, evaluation
    from adapter_export.analysis.evaluation_page import page as page_of
    from adapter_export.bundle.opened import OpenedBundle
    from adapter_export.format.labelled import Columns, data_digest

    if page is not None:
        Output(Path(page), force).ensure_writable()
    opened = OpenedBundle.open(folder_of(bundle))
    name = _adapter(opened, adapter)
    task = opened.runtime_session().answering(name)
    reader = reader_of(opened, task)
    columns = Columns(task.input if text == "text" and task.input in MEDIA else text, pair, label, start)
    rows = labelled(Path(data), task, columns, skip_incomplete, {"group": group, "slices": slices})
    asked = ask(rows[:limit], reader, name, task, group)
    model = None if against is None else model_of(opened.manifest, against)
    step = _counted(on_step, len(asked.read) * (1 if model is None else 2))
    setting = Setting(
        name,
        Path(data),
        data_digest(Path(data), rows),
        asdict(columns),
        slices,
        dict(gate or {}),
        resamples,
        seed,
        limited=len(rows) > len(asked.rows),
    )
    setting.check(asked)
    results = by_bundle(asked, reader, name, lambda done: step(done, name))
    reference = None
    if model is not None:
        runner, output = model.runner(allow_mismatch=True), str(opened.record(name).output)
        theirs = by_model(
            asked,
            reader,
            opened.source(name),
            runner,
            opened.base_outputs,
            output,
            lambda done: step(len(asked.read) + done, runner.description),
        )
        reference = runner.description, theirs
    found = evaluation(opened, setting, asked, results, reference)
    if page is not None:
        with Output(Path(page), force).file() as temporary:
            temporary.write_text(page_of(found), encoding="utf-8")
    return found


def _adapter(bundle: OpenedBundle, given: str | None) -> str:
    names = [record.name for record in bundle.manifest.adapters]
    if given is not None and given not in names:
        known = quoted(names)
        raise UsageError("no such adapter", where=argument("adapter"), found=f"`{given}`", expected=f"one of {known}")
    chosen = given or (names[0] if len(names) == 1 else bundle.manifest.head)
    if chosen is None:
        known = quoted(names)
        raise UsageError("there are several adapters", found=known, fix=f"name one: {argument('adapter')}")
    if bundle.record(chosen).task is None:
        raise RequestError(
            "nobody knows what the answers of this adapter mean",
            where=f"adapter `{chosen}`",
            found="no head" if bundle.record(chosen).output is None else "a head without a task",
            fix="build the bundle with an adapter whose head has a task",
        )
    return chosen


def reader_of(bundle: OpenedBundle, task: Task) -> Reader:
    """Return what makes inputs of texts, images or audio, whichever a task takes.

    Raises:
        RequestError: the bundle cannot read them.
    """
    served = bundle.served
    return {"image": served.images, "audio": served.audio}.get(task.input, served.texts)(bundle.runtime_session())


def labelled(
    path: Path, task: Task, columns: Columns, skip_incomplete: bool, named: Mapping[str, str | None]
) -> list[LabelledRow]:
    """Read the rows; pairs whose vectors are compared have a number, as a regression has.

    `named` are further columns, by their arguments; one that is not there is a `UsageError`.
    """
    from adapter_export.format.labelled import labelled_rows

    problem = "regression" if task.type == "embedding" and columns.pair is not None else task.type
    medium: Any = task.input if task.input in MEDIA else None
    rows = labelled_rows(path, columns, problem, skip_incomplete=skip_incomplete, medium=medium)[0]
    for option, column in named.items():
        if column is not None and column not in rows[0].cells:
            known = quoted(rows[0].cells)
            raise UsageError("no such column", where=argument(option), found=f"`{column}`", expected=f"one of {known}")
    if named.get("group") is not None and task.type != "ranking":
        raise UsageError(f"only a ranking has a {argument('group')}", found=f"the task `{task.type}`")
    return rows


def _counted(on_step: OnStep | None, total: int) -> Callable[[int, str], None]:
    if on_step is None:
        return lambda *_: None
    on_step(0, total, "")
    return lambda done, note: on_step(done, total, note)
