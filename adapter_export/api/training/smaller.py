"""Make an adapted model smaller: adapters in fewer layers, or a student without adapters that learns from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, Unpack, cast

from adapter_export.api.adapters.adapters import load_adapter
from adapter_export.api.adapters.kinds import at_least_1
from adapter_export.api.adapters.task_facts import check_thresholds
from adapter_export.api.models.base import ArchiveBase, Base, OnNote, PathLike, Steps, require, silent, tell
from adapter_export.api.training.train import (
    PassOptions,
    TaskOptions,
    as_own,
    check_apart,
    check_head,
    check_known,
    check_no_cache,
    check_padding,
    check_rows,
    checkpoints_of,
    collapsed,
    engine_for,
    fresh_head,
    open_trainable,
    own_options,
    read_so,
    source_of_rows,
    task_files,
)
from adapter_export.errors import AdapterError, BaseMismatchError, ParityError, UsageError, argument
from adapter_export.format.labelled import Columns
from adapter_export.graph.tasks import CAUSAL_LM, DEFAULT_TYPE, TASK_TYPES, Task
from adapter_export.option import (
    DEVICE,
    LABEL,
    METRIC,
    PAIR,
    SITE_MAP,
    SKIP_INCOMPLETE,
    START,
    TEXT,
    THREADS,
    TOKENIZER,
    TRUST_PICKLE,
    VALIDATION,
    VALIDATION_DATA,
    Option,
)
from adapter_export.safe_io.output import Output
from adapter_export.version import __version__

if TYPE_CHECKING:
    from adapter_export.analysis.drop import Drop
    from adapter_export.analysis.student import Distillation
    from adapter_export.graph.adapter import Adapter
    from adapter_export.torch_backend.attach import AdaptedModel
    from adapter_export.torch_backend.train.data import Examples
    from adapter_export.torch_backend.train.distil_loop import Student
    from adapter_export.torch_backend.train.record import Progress, TrainingResult
    from adapter_export.torch_backend.train.task_files import TaskFiles, TextTask

STUDENT, GRAPH, REPORT = "model.pt", "model.onnx", "distillation.json"
"""What `distil` writes: the base archive with its head, the plain ONNX graph, and the report."""


class DistilOptions(TaskOptions, PassOptions, total=False):
    """What is learnt without a teacher, and how."""


def distil(
    model: Base | PathLike,
    data: PathLike,
    output: PathLike | None = None,
    *,
    adapter: Adapter | PathLike | None = None,
    layers: Annotated[
        int | None, Option("How many of the layers the student has, evenly spaced; all if not given.", "N", least=1)
    ] = None,
    keep: Annotated[tuple[int, ...] | None, Option("Which layers, counted from 0.", "N,N,…")] = None,
    soft: Annotated[float, "The weight of the teacher's results."] = 1.0,
    hidden: Annotated[float, "The weight of its hidden states."] = 1.0,
    hard: Annotated[float, "The weight of the labels."] = 1.0,
    temperature: Annotated[float, "What logits are divided by before they are compared."] = 2.0,
    match: Annotated[
        Literal["cosine", "mse"], "How hidden states are compared: by their angle, or by squared differences."
    ] = "cosine",
    unlabelled: Annotated[
        PathLike | None, Option("More texts, without labels, of which the teacher's answers are learnt.", "FILE")
    ] = None,
    text: Annotated[str, TEXT] = "text",
    pair: Annotated[str | None, PAIR] = None,
    label: Annotated[str, LABEL] = "label",
    start: Annotated[str | None, START] = None,
    skip_incomplete: Annotated[bool, SKIP_INCOMPLETE] = False,
    validation: Annotated[float | None, VALIDATION] = None,
    validation_data: Annotated[PathLike | None, VALIDATION_DATA] = None,
    test_data: Annotated[PathLike | None, Option("Compare both on this file.", "FILE")] = None,
    tokenizer: Annotated[PathLike | None, TOKENIZER] = None,
    max_tokens: Annotated[int | None, Option("Cut texts there; where the teacher cuts if not given.", least=1)] = None,
    learning_rate: Annotated[float, "The highest one; weights that are trained already take a small one."] = 1e-4,
    metric: Annotated[str | None, METRIC] = None,
    device: Annotated[str | None, DEVICE] = None,
    precision: Annotated[
        Literal["no", "bf16", "fp16"] | None, "Of matrix products.  [default: no, which is float32]"
    ] = None,
    threads: Annotated[int | None, THREADS] = None,
    log_to: Annotated[tuple[str, ...], "Trackers that follow the run, as in `train`."] = (),
    resume: Annotated[bool, "Go on with an interrupted run, and stop if there is none."] = False,
    restart: Annotated[bool, "Forget an interrupted run."] = False,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: bool = False,
    on_note: OnNote | None = None,
    progress: Progress | None = None,
    **options: Unpack[DistilOptions],
) -> Distillation:
    """Let a student without adapters learn from an adapted model; without an adapter, from labels alone.

    All weights of the student learn. It has the architecture of the model, whole or with some of its layers, and starts
    from the model's weights and the adapter's head. The loss is the sum of three, with their weights: of the teacher's
    results at a temperature (Hinton et al. 2015), of its hidden states before each layer that is kept and at the end,
    and of the labels. Without an adapter it is full fine-tuning, with a fresh head.

    With the same arguments the result is the same bit for bit; a run with an output that was interrupted goes on when
    it is given again. The annotations describe the other arguments, which are the options of `adapter-export distil`.

    Args:
        model: the base of the teacher, one that torch can train.
        data: labelled rows, as `train` reads them.
        output: the folder to write: the student as a base with its head (`model.pt`), which `build`, `sites` and
            `train` take, as plain ONNX without slots (`model.onnx`), and the report (`distillation.json`).
        adapter: the teacher's adapter, with a head, or its folder.
        force: replace what is at `output`.
        on_note: is told what is doubtful in the data.
        progress: is told of the run as it goes.

    Raises:
        UsageError: arguments do not go together, or have a value that they cannot have.
        BaseModelError: the base cannot be trained, or a layer cannot be left out.
        AdapterError: the adapter has no head whose task is known; `BaseMismatchError`: it is of another base.
        DataError: the data cannot be used, or hold labels that the teacher does not know.
        TrainingError: the loss is not finite, or the interrupted run is another one.
    """
    given = cast("dict[str, Any]", {key: value for key, value in options.items() if value is not None})
    _check_distil(given, adapter, unlabelled)
    check_apart(validation=validation, validation_data=validation_data)
    check_apart(resume=resume, restart=restart)
    check_apart(layers=layers, keep=keep)
    path = None if output is None else Path(output)
    if path is not None:
        Output(path, force).ensure_writable(folder=True, sources=[model, data, adapter])
    require("torch", "torch", "distillation")
    require("accelerate", "torch", "distillation")
    import numpy as np

    from adapter_export.analysis.student import compared, timed
    from adapter_export.torch_backend.train.data import TrainingData
    from adapter_export.torch_backend.train.distil_loop import Lesson, Teacher
    from adapter_export.torch_backend.train.measure import cosine_apart, judged
    from adapter_export.torch_backend.train.record import TrainingSettings, training_record
    from adapter_export.torch_backend.train.train_loop import answered, evaluate
    from adapter_export.torch_backend.train.train_loop import train as learn

    lesson = Lesson(soft, hidden, hard, temperature, match)
    chosen = own_options(given, PassOptions)
    settings = TrainingSettings(**chosen, learning_rate=learning_rate, metric=metric, cache_mb=0)
    engine = engine_for(path, device, precision, log_to, threads)
    if not engine.first:
        progress, on_note = None, lambda _: None
    partial = checkpoints_of(path, resume=resume, restart=restart)
    base = open_trainable(model, site_map, trust_pickle=trust_pickle)
    check_no_cache(base)
    taught = None if adapter is None else _adapter_of(base, adapter)
    task = None if taught is None else taught.task
    held_out = (0.1 if validation is None else validation) if validation_data is None else Path(validation_data)
    tested = None if test_data is None else Path(test_data)
    columns = Columns(text, pair, label, start)
    words, columns = _words(base, given, task, columns, tokenizer, max_tokens)
    files = task_files(given, task, words, (Path(data), held_out, tested), columns, skip_incomplete)
    rows = _read(base, files, words, settings.seed, unlabelled)
    check_rows(base, rows)
    tell(rows.notes, on_note)
    kept = _kept(base, layers, keep)
    student, teacher = _attached(base, kept, taught, given, rows, settings.seed, paired=pair is not None)
    pads = student.pads and (teacher is None or teacher.pads)
    tell(check_padding(base, rows, pads=pads), on_note)
    if progress is not None:
        counts = f"{len(rows.training.texts):,} rows to learn from, {len(rows.validation.texts):,} to validate by"
        progress.prepared(f"{counts}; all weights of {len(kept)} layers learn.")
    part, measured = ("validation", rows.validation) if rows.test is None else ("test", rows.test)
    with engine.open() as accelerator:
        settings = replace(settings, precision=accelerator.mixed_precision)
        student = student.on(accelerator.device)
        teacher = None if teacher is None else teacher.on(accelerator.device)
        result = learn(
            student,
            TrainingData(rows.training, rows.validation),
            settings,
            progress=progress,
            checkpoints=partial,
            accelerator=accelerator,
            teacher=None if teacher is None else Teacher(teacher, lesson),
        )
        test = None if rows.test is None else evaluate(student, rows.test, settings, accelerator)
        sides = []
        for side in (student, teacher):
            if side is not None:
                order, found, wanted = answered(side, measured, settings, accelerator)
                sides.append(judged(side.task, found, wanted, measured.only(order)))
                if side is student and rows.problem == "embedding":
                    tell(collapsed(cosine_apart(found, wanted)), on_note)
        writes = accelerator.is_main_process
    decided = {
        "layers": kept,
        "padding_neutral": pads,
        **({} if taught is None else {"teacher": taught.name, **asdict(lesson)}),
        **read_so(given, columns, words),
    }
    record = training_record(settings, decided, rows, result, test)
    made = ArchiveBase(None, base.options, loaded=student.to_base(record))
    models = [(made, made.base_head), *([] if taught is None else [(base, taught)])]
    report = compared(sides, [_costs(*each) for each in models], part, len(measured.lengths), record)
    if writes and (path is not None or taught is not None):
        with TemporaryDirectory(prefix="adapter-export-") as folder:
            graph = _plain(made, Path(folder), measured)
            if taught is not None:
                with TemporaryDirectory(prefix="adapter-export-") as other:
                    tokens = round(float(np.median(measured.lengths)))
                    report = timed(report, base.exported(Path(other)), taught, graph, tokens)
            if path is not None:
                report = replace(report, folder=path)
                _write(made, graph, report, result, path, force=force)
    return report


def drop(
    adapter: Adapter | PathLike,
    base: Base | PathLike,
    data: PathLike,
    output: PathLike | None = None,
    *,
    layers: Annotated[int | None, Option("Drop the adapters of so many of the lowest layers.", "N", least=1)] = None,
    leave_out: Annotated[tuple[int, ...] | None, Option("Drop the adapters of these layers.", "N,N,…")] = None,
    text: Annotated[str, TEXT] = "text",
    pair: Annotated[str | None, PAIR] = None,
    label: Annotated[str, LABEL] = "label",
    start: Annotated[str | None, START] = None,
    skip_incomplete: Annotated[bool, SKIP_INCOMPLETE] = False,
    tokenizer: Annotated[PathLike | None, TOKENIZER] = None,
    batch_size: Annotated[int, Option("Rows that are computed together.", "N", least=1)] = 32,
    threads: Annotated[int | None, THREADS] = None,
    plot: Annotated[PathLike | None, Option("Draw scores and times: `.svg` or `.png`.", "FILE")] = None,
    force: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> Drop:
    """Say what an adapter loses and saves without its lowest layers (AdapterDrop; Rücklé et al. 2021).

    Scores are measured in torch, with none of the layers dropped, the lowest one, the two lowest, and so on; the times
    in ONNX Runtime, over that of the base: of the graph with the slots of the whole adapter, where those of dropped
    layers are idle, and of the graph of the dropped adapter, which has no slots there.

    Args:
        adapter: the adapter, with a head, or its folder. One that was trained with `drop_layers` loses less.
        base: the model that it was trained on, one that torch can run.
        data: labelled rows, as `train` reads them; those of a test, not those that it learnt from.
        output: the folder to write the adapter to without `layers` or `leave_out`.
        force: replace what is at `output` and `plot`.
        on_progress: is told each step before it begins.

    Raises:
        UsageError: arguments do not go together, or layers that the adapter does not have.
        AdapterError: it has no head whose task is known; `BaseMismatchError`: it is of another base.
        DataError: the data cannot be used, or hold labels that the adapter does not know.
        OutputExistsError, WriteError: the adapter or the picture cannot be written.
    """
    told = on_progress or silent
    path, picture = None if output is None else Path(output), None if plot is None else Path(plot)
    check_apart(layers=layers, leave_out=leave_out)
    if path is not None and layers is None and leave_out is None:
        fix = f"say which layers: {argument('layers')} or {argument('leave_out')}"
        raise UsageError("nothing is to be dropped of the adapter that is to be written", fix=fix)
    for place in (path, picture):
        if place is not None:
            Output(place, force).ensure_writable(folder=place is path, sources=[adapter, base, data])
    torch = require("torch", "torch", "measuring an adapter without layers")
    import numpy as np

    from adapter_export.analysis.drop import Drop, Dropped, findings, time_dropped
    from adapter_export.analysis.plot import check_picture, draw_drop
    from adapter_export.analysis.scores import score
    from adapter_export.format.adapter_files import write_adapter
    from adapter_export.torch_backend.attach import attach
    from adapter_export.torch_backend.train.measure import judged
    from adapter_export.torch_backend.train.record import TrainingSettings
    from adapter_export.torch_backend.train.task_files import read_examples
    from adapter_export.torch_backend.train.train_loop import answered

    if picture is not None:
        check_picture(picture)
    if threads is not None:
        torch.set_num_threads(at_least_1("threads", threads))
    opened = open_trainable(base)
    check_no_cache(opened)
    whole = _adapter_of(opened, adapter)
    assert whole.head is not None
    task, sites = whole.head.task, opened.sites.complete
    choices, at = _choices(whole.layers(sites), layers, leave_out)
    words, columns = _words(opened, {}, task, Columns(text, pair, label, start), tokenizer, None)
    files = task_files({}, task, words, (Path(data), 0.1, None), columns, skip_incomplete)
    rows = read_examples(files, words, tuple(record.name for record in opened.inputs))
    settings, model = TrainingSettings(batch_size=batch_size), attach(opened.torch, whole, sites=sites)
    scores = []
    for dropped in choices:
        told(f"answering {len(rows.lengths):,} rows without the adapters of {len(dropped)} layers")
        model.leave_out([place for own in dropped.values() for place in own])
        order, found, wanted = answered(model, rows, settings)
        of_rows = judged(task, found, wanted, rows.only(order))
        scores.append(score(of_rows))
    lesser = [_without(whole, dropped) for dropped in choices]
    tokens = round(float(np.median(rows.lengths)))
    with TemporaryDirectory(prefix="adapter-export-") as folder:
        onnx = opened.exported(Path(folder), Steps(told))
        told("timing each beside the base")
        timed = time_dropped(onnx, whole, lesser, tokens)
    curve = tuple(
        Dropped(tuple(dropped), len(made.placements), made.cost().parameters, its, *seconds)
        for dropped, made, its, seconds in zip(choices, lesser, scores, timed, strict=True)
    )
    if path is not None and at is not None:
        write_adapter(replace(lesser[at], name=path.resolve().name), path, force=force)
    result = Drop(
        whole.name,
        of_rows.metrics[0].name,
        len(rows.lengths),
        tokens,
        curve,
        None if path is None or at is None else curve[at],
        path,
        findings(curve, of_rows.metrics[0]),
    )
    if picture is not None:
        draw_drop(result, picture, force=force)
    return result


def _choices(
    layers: Mapping[int, list[str]], lowest: int | None, leave_out: Sequence[int] | None
) -> tuple[list[dict[int, list[str]]], int | None]:
    """Return the layers that are dropped together, with their sites, and which of these choices is asked for.

    They are none, the lowest, the two lowest, and so on; behind them what is asked for, if it is none of these.
    """
    if not layers:
        raise AdapterError("acts in no layer, so that there is nothing to drop", found="a head alone")
    found = [dict(list(layers.items())[:count]) for count in range(len(layers) + 1)]
    if lowest is not None:
        if at_least_1("layers", lowest) > len(layers):
            raise UsageError("acts in fewer layers", where=argument("layers"), found=lowest, expected=len(layers))
        return found, lowest
    if leave_out is None:
        return found, None
    if not leave_out or not set(leave_out) <= set(layers):
        named, known = (", ".join(map(str, each)) or "none" for each in (leave_out, layers))
        raise UsageError("acts in other layers", where=argument("leave_out"), found=named, expected=f"some of {known}")
    asked = {layer: layers[layer] for layer in sorted(set(leave_out))}
    if asked not in found:
        found.append(asked)
    return found, found.index(asked)


def _without(adapter: Adapter, dropped: Mapping[int, list[str]]) -> Adapter:
    """Return the adapter without some layers; scores of its record are those of another one, so they lie deeper."""
    if not dropped:
        return adapter
    record = {"producer": f"adapter-export {__version__}", "dropped_layers": list(dropped)}
    lesser = adapter.without([place for places in dropped.values() for place in places])
    return replace(lesser, training={**record, "whole": {"adapter": adapter.name, "training": adapter.training}})


def _check_distil(given: Mapping[str, Any], adapter: object, unlabelled: object) -> None:
    """Refuse options that are for a student without a teacher where there is one, and the other way round."""
    check_known("distil", given, DistilOptions)
    if given.get("task") == CAUSAL_LM:
        raise UsageError("a student answers by its head", where=argument("task"), found=f"`{CAUSAL_LM}`")
    of_head = [name for name in given if name in TaskOptions.__annotations__]
    if adapter is not None and of_head:
        what = "the teacher's task and head are the student's"
        raise UsageError(what, found=", ".join(map(argument, of_head)), fix="leave it out")
    if adapter is None and unlabelled is not None:
        fix = f"give {argument('adapter')}, or leave it out"
        raise UsageError("texts without labels need a teacher", where=argument("unlabelled"), fix=fix)
    check_head(given)
    check_thresholds(given.get("thresholds", ()))


def _adapter_of(base: Base, place: Adapter | PathLike) -> Adapter:
    """Return an adapter of this base, whose head has a task."""
    adapter = load_adapter(place, near=base.path) if isinstance(place, str | Path) else place
    if adapter.base != base.fingerprint:
        raise BaseMismatchError(adapter.name, found=adapter.base, expected=base.fingerprint, can_be_allowed=False)
    if adapter.task is None:
        raise AdapterError(
            "nobody knows what the answers of this adapter mean",
            where=f"adapter `{adapter.name}`",
            found="no head" if adapter.head is None else "a head without a task",
            fix="give an adapter whose head has a task",
        )
    return adapter


def _words(
    base: Base,
    given: Mapping[str, Any],
    task: Task | None,
    columns: Columns,
    tokenizer: PathLike | None,
    max_tokens: int | None,
) -> tuple[Any, Columns]:
    """Return what makes the base's inputs of rows, as it did for the teacher, and the columns that it reads."""
    columns.check(given.get("task", DEFAULT_TYPE) if task is None else task.type)
    limit = max_tokens if max_tokens is not None or task is None else task.max_tokens
    words, columns = source_of_rows(base, given, columns, tokenizer=tokenizer, max_tokens=limit)
    if task is None:
        return words, columns
    paired = task.input == "pair" or task.kind.pairs == "required"
    if task.input in ("text", "pair") and paired != (columns.pair is not None):
        fix = f"name the column of the second texts: {argument('pair')}" if paired else f"leave {argument('pair')} out"
        raise UsageError(f"the teacher answers {'pairs of texts' if paired else 'single texts'}", fix=fix)
    known = words.digest if base.media is None else base.media.record.digest
    wanted = task.tokenizer if base.media is None else task.processor
    if wanted not in (None, known):
        raise AdapterError(
            "the teacher was trained with another tokenizer, or another processor",
            found=f"digest {str(known)[:12]}…",
            expected=f"{wanted[:12]}…",
            fix=f"give the one that it was trained with: {argument('tokenizer')}",
        )
    return words, columns


def _read(base: Base, files: TaskFiles, words: Any, seed: int, unlabelled: PathLike | None) -> TextTask:
    """Read the rows; texts without labels stand behind the others."""
    import numpy as np

    from adapter_export.format.labelled import read_texts
    from adapter_export.text import Pair
    from adapter_export.torch_backend.train.data import TextExamples
    from adapter_export.torch_backend.train.objectives.objective import IGNORED
    from adapter_export.torch_backend.train.task_files import read_task

    rows = read_task(files, words, tuple(record.name for record in base.inputs), seed)
    if unlabelled is None:
        return rows
    learnt = rows.training
    if not TASK_TYPES[files.problem].one_label or not isinstance(learnt, TextExamples):
        what = "only a text with one label may be without it"
        raise UsageError(what, where=argument("unlabelled"), found=f"the task `{files.problem}`", fix="leave it out")
    held_out = {text for part in (rows.validation, rows.test) if part is not None for text in part.texts}
    read = [text if other is None else Pair(text, other) for text, other in read_texts(Path(unlabelled), files.columns)]
    more = [text for text in dict.fromkeys(read) if text not in held_out and text not in set(learnt.texts)]
    answers = np.concatenate([learnt.answers, np.full(len(more), IGNORED, np.int64)])
    every = TextExamples.of([*learnt.texts, *more], answers, words, learnt.names, files.problem, files.side)
    sources = {**rows.sources, "unlabelled": {"file": Path(unlabelled).name, "rows": len(more)}}
    return replace(rows, training=every, sources=sources)


def _kept(base: Base, count: int | None, keep: Sequence[int] | None) -> list[int]:
    """Return the layers of the student: all, some that are named, or so many, evenly spaced from the first to the last.

    For six of twelve these are 0, 2, 4, 7, 9 and 11, as in DistilBERT (Sanh et al. 2019).
    """
    import numpy as np

    from adapter_export.torch_backend.base.derive import layers_of

    sites = base.sites.complete
    layers = layers_of(sites)
    if keep is not None:
        if not keep or len(set(keep)) < len(keep) or not set(keep) <= set(layers):
            found, expected = ", ".join(map(str, keep)) or "none", f"different ones of {layers[0]} to {layers[-1]}"
            raise UsageError("these layers cannot be kept", where=argument("keep"), found=found, expected=expected)
        chosen = sorted(keep)
    elif count is None:
        chosen = layers
    else:
        if at_least_1("layers", count) > len(layers):
            raise UsageError("the model has fewer layers", where=argument("layers"), found=count, expected=len(layers))
        if any(site.role == "cross_attention" for site in sites.sublayers):
            fix = f"name those of the encoder and of the decoder: {argument('keep')}"
            raise UsageError("the model has layers of two kinds", where=argument("layers"), found=count, fix=fix)
        chosen = [layers[round(place)] for place in np.linspace(0, len(layers) - 1, count)]
    if base.given is not None and len(chosen) < len(layers):
        raise UsageError(f"{argument('site_map')} has the sites of all layers", fix="keep all of them")
    return chosen


def _attached(
    base: Base,
    kept: Sequence[int],
    adapter: Adapter | None,
    given: Mapping[str, Any],
    rows: TextTask,
    seed: int,
    *,
    paired: bool,
) -> tuple[Student, AdaptedModel | None]:
    """Return the student, and its teacher, whose hidden states before each layer that is kept are seen."""
    from adapter_export.graph.adapter import BASE_HEAD, HEAD
    from adapter_export.graph.adapter import Adapter as AdapterType
    from adapter_export.torch_backend.attach import AdaptedModel
    from adapter_export.torch_backend.base.derive import ends_of, layers_of, with_layers
    from adapter_export.torch_backend.train.distil_loop import Student
    from adapter_export.torch_backend.train.init_adapter import head_alone, with_prior

    sites, own = base.sites.complete, base.torch
    if len(kept) < len(layers_of(sites)):
        own = with_layers(own, sites, kept)
    its = ArchiveBase(None, base.options, loaded=own).sites.complete
    if adapter is None:
        head = fresh_head(given, rows, sites.width, paired=paired)
        head, started = as_own(base, head) if given.get("head") == "own" else (head, {})
        first = head_alone(head, BASE_HEAD, own.fingerprint, seed=seed)
        if TASK_TYPES[rows.problem].starts_at_prior:
            first = with_prior(first, rows.training.answers)
        return Student(own, replace(first, weights={**first.weights, **started}), its), None
    weights = {name: tensor for name, tensor in adapter.weights.items() if name.startswith(f"{HEAD}.")}
    first = AdapterType(BASE_HEAD, "base_head", own.fingerprint, {}, {}, weights, adapter.head)
    seen = [ends_of(its, layer)[0] for layer in layers_of(its)[1:]]
    matched = [ends_of(sites, layer)[0] for layer in kept[1:]]
    final = len(base.torch.axes(sites.final))
    if any(len(base.torch.axes(value)) != final for value in matched):  # a base that flattens batch and tokens
        seen, matched = [], []
    return Student(own, first, its, seen), AdaptedModel(base.torch, adapter, sites, seen=matched)


def _costs(base: Base, adapter: Adapter | None) -> tuple[int, int]:
    """Return the layers, and the parameters of a base with an adapter."""
    from adapter_export.torch_backend.base.derive import layers_of

    return len(layers_of(base.sites.map)), base.parameters + (0 if adapter is None else adapter.cost().parameters)


def _plain(base: Base, folder: Path, examples: Examples) -> Path:
    """Write the student as plain ONNX, and see that it computes what torch computes."""
    import numpy as np

    from adapter_export.numerics.budget import budget, extent
    from adapter_export.numerics.runner import head_output
    from adapter_export.onnx_backend.base.external import write_model
    from adapter_export.onnx_backend.rewrite.insert import without_slots
    from adapter_export.runtime.graphs import open_session, run_session

    head, path = base.base_head, folder / "plain" / GRAPH
    assert head is not None  # as the student has one
    assert head.head is not None
    path.parent.mkdir()
    write_model(without_slots(base.exported(folder), head), path)
    session, size = open_session(path, threads=1), extent(base.flow)
    output, reference = head_output([record.name for record in base.outputs], head.head.output), base.runner()
    for row in (0, len(examples.lengths) - 1):
        call = next(examples.calls(np.array([row]), pads=False))
        inputs = {name: value.numpy() for name, value in call.inputs.items()}
        expected = reference.run(inputs, head)[output]
        apart = float(np.abs(run_session(session, inputs)[output] - expected).max())
        allowed = budget("float32", inner=size.inner, depth=size.depth, scale=float(np.abs(expected).max()))
        if not apart <= allowed.absolute:
            raise ParityError(f"`{output}` of the student", found=f"{apart:.2e}", expected=f"at most {allowed.reason}")
    return path


def _write(base: Base, graph: Path, report: Distillation, result: TrainingResult, output: Path, *, force: bool) -> None:
    """Write the student, its graph, the report and the learning curve, and forget the checkpoints."""
    from adapter_export.format.files import canonical_json
    from adapter_export.torch_backend.base.torch_base import write_base
    from adapter_export.torch_backend.train.objectives import OBJECTIVES
    from adapter_export.torch_backend.train.record import CURVE_FILE, draw_curve

    with Output(output, force).folder() as folder:
        write_base(base.torch, folder / STUDENT)
        for file in graph.parent.iterdir():
            shutil.copyfile(file, folder / file.name)
        (folder / REPORT).write_bytes(canonical_json(report.to_json()))
        loss_name = OBJECTIVES[report.training["task"]].loss_name
        draw_curve(result, f"{output.name} (student)", folder / CURVE_FILE, loss_name=loss_name)
    shutil.rmtree(output.with_name(f"{output.name}.partial"), ignore_errors=True)
