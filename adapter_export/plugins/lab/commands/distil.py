"""Distil an adapted model into a student without adapters."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.address import Address, PathLike
from adapter_export.bases.base import Base
from adapter_export.bases.forms import ArchiveBase
from adapter_export.bases.kinds import at_least_1
from adapter_export.commands.command import Command, Screen, next_line
from adapter_export.commands.training.train import SECTIONS
from adapter_export.errors import ParityError, UsageError
from adapter_export.extras import require
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Force, Option, OptionsOf, changed
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.training.job import Trained, TrainingJob
from adapter_export.training.learners import NewStudent
from adapter_export.training.loop.settings import DistillationLoss, LoopSpec, Machine, Schedule
from adapter_export.training.rows import adapter_with_task, check_adapter_of, open_trainable, tables_before_opening
from adapter_export.training.specs import PREFIXES, DataSpec, HeadSpec
from adapter_export.words import argument, joined

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.plugins.lab.student import Distillation
    from adapter_export.training.loop.data import Examples

STUDENT, GRAPH, REPORT = "model.pt", "model.onnx", "distillation.json"
"""Files that `distil` writes: the base archive with its head, the plain ONNX graph, and the report."""

_NOT_OF_STUDENTS = ("learning_rate", "quick", "drop_layers", "cache_mb", "class_weights")
DISTIL_OPTIONS = OptionsOf(DistillationLoss, DataSpec, HeadSpec, Schedule, LoopSpec, Machine, without=_NOT_OF_STUDENTS)
"""Options of a distillation besides its files and output."""


def distil(
    model: Base | Address,
    data: Annotated[Address, Option("Labelled rows, as `train` reads them.", "PATH", "--data")],
    output: Annotated[PathLike | None, Option("Folder to write.", "PATH", "-o", required=True)] = None,
    *,
    adapter: Annotated[
        Adapter | Address | None, Option("Folder of the teacher's adapter. Default: learn from labels only.", "PATH")
    ] = None,
    layers: Annotated[
        int | None, Option("Layers of the student, evenly spaced; defaults to all layers.", "N", least=1)
    ] = None,
    keep: Annotated[tuple[int, ...] | None, Option("Layers of the student by number, from 0.", "N,N,…")] = None,
    unlabelled: Annotated[
        Address | None, Option("Unlabelled texts, on which the student learns the teacher's answers.", "FILE")
    ] = None,
    learning_rate: Annotated[float, "Peak learning rate; pretrained weights need a small one."] = 1e-4,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
    **options: Annotated[Any, DISTIL_OPTIONS],
) -> Distillation:
    """Distil an adapted model into a student without adapters; without an adapter, learn from labels only.

    All weights of the student are trained. It has the model's architecture, with all or some of its layers, and starts
    from the model's weights and the adapter's head. The loss is a weighted sum of three: the teacher's logits at a
    temperature (Hinton et al. 2015), its hidden states before each kept layer and at the end, and the labels. Without
    an adapter, this is full fine-tuning with a new head.

    Equal arguments give bit-identical results, and the same call resumes an interrupted run. The folder contains the
    student as a base with its head (`model.pt`), for `build`, `sites` and `train`; as plain ONNX without slots
    (`model.onnx`); and the report (`distillation.json`).

    Args:
        model: the base of the teacher, one that torch can train.
        data: labelled rows, as `train` reads them.
        output: the folder to write `model.pt`, `model.onnx` and `distillation.json` to.
        adapter: the teacher's adapter, with a head, or its folder.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        force: replace `output`.
        reporter: receives the progress, the measurements of each step, and notes on the data.

    Raises:
        UsageError: arguments exclude each other or are out of range.
        BaseModelError: the base cannot be trained, or a layer cannot be removed.
        AdapterError: the adapter has no head with a task; its subclass `BaseMismatchError`: it belongs to another
            base.
        DataError: the data cannot be used, or contain labels that the teacher lacks.
        TrainingError: the loss is not finite, or the interrupted run had other arguments.
    """
    of_loss, of_data, of_head, of_schedule, of_loop, of_machine = DISTIL_OPTIONS.split("distil", options)
    rows, head, machine = DataSpec(data, unlabelled, **of_data), HeadSpec(**of_head), Machine(**of_machine)
    _check_teacher(rows, head, has_teacher=adapter is not None)
    if layers is not None and keep is not None:
        raise UsageError(
            argument("layers") + " and " + argument("keep") + " exclude each other", fix="remove one of them"
        )
    path = None if output is None else Path(output)
    if path is not None:
        Output(path, force).ensure_writable(folder=True, sources=[model, data, adapter])
    loss, loop = DistillationLoss(**of_loss), LoopSpec(cache_mb=0, **of_loop)
    schedule = Schedule(learning_rate=learning_rate, **of_schedule)
    partial = machine.checkpoints(path)
    base = open_trainable(model, site_map, trust_pickle=trust_pickle)
    teacher = None if adapter is None else adapter_with_task(base, adapter)
    tables = tables_before_opening(base, rows, head, None if teacher is None else teacher.task)
    require("torch", "torch", "distillation")
    require("accelerate", "torch", "distillation")
    if teacher is not None:
        check_adapter_of(base, teacher)
    learner = NewStudent(tuple(_kept_layers(base, layers, keep)), teacher, loss)
    job = TrainingJob(base, learner, rows, head, loop, schedule, machine, partial, tables)
    done = job.run(reporter)
    student = ArchiveBase(None, base.options, loaded=learner.student(done))
    report = _compared(base, student, teacher, done)
    if not done.writes or (path is None and teacher is None):
        return report
    with temporary_folder() as folder:
        graph = _plain(student, folder, done.measured[1])
        if teacher is not None:
            report = _timed(report, base, teacher, graph, done)
        if path is not None:
            report = replace(report, folder=path)
            _write(student, graph, report, Output(path, force))
            job.finish(done, path, f"{path.name} (student)", reporter)
    return report


def _check_teacher(data: DataSpec, head: HeadSpec, *, has_teacher: bool) -> None:
    """Refuse options that need a teacher if there is none, and the reverse."""
    from adapter_export.graph.tasks import TASK_TYPES

    if not TASK_TYPES[head.task].has_head:
        raise UsageError("a student needs a head", where=argument("task"), found=f"`{head.task}`")
    of_texts = [name for name in ("truncation", *PREFIXES, "packing", "end_token") if name in changed(data)]
    if has_teacher and (changed(head) or of_texts):
        what = "the student takes its task and head from the teacher"
        raise UsageError(what, found=joined(map(argument, [*changed(head), *of_texts])), fix="remove it")
    if not has_teacher and data.unlabelled is not None:
        fix = "add " + argument("adapter") + ", or remove it"
        raise UsageError("texts without labels need a teacher", where=argument("unlabelled"), fix=fix)
    if not has_teacher:
        head.check(data)


def _kept_layers(base: Base, count: int | None, keep: Sequence[int] | None) -> list[int]:
    """Return the layers of the student: all, those of `keep`, or `count` of them, evenly spaced from first to last.

    For six of twelve these are 0, 2, 4, 7, 9 and 11, as in DistilBERT (Sanh et al. 2019).
    """
    import numpy as np

    from adapter_export.torch_backend.base.derive import layers_of

    sites = base.sites.complete
    layers = layers_of(sites)
    if keep is not None:
        if not keep or len(set(keep)) < len(keep) or not set(keep) <= set(layers):
            shown, expected = ", ".join(map(str, keep)) or "none", f"different ones of {layers[0]} to {layers[-1]}"
            raise UsageError("invalid layers to keep", where=argument("keep"), found=shown, expected=expected)
        chosen = sorted(keep)
    elif count is None:
        chosen = layers
    else:
        if at_least_1("layers", count) > len(layers):
            raise UsageError("the model has fewer layers", where=argument("layers"), found=count, expected=len(layers))
        if any(site.role == "cross_attention" for site in sites.sublayers):
            fix = "name the layers of the encoder and of the decoder: " + argument("keep")
            raise UsageError("the model has encoder and decoder layers", where=argument("layers"), found=count, fix=fix)
        chosen = [layers[round(place)] for place in np.linspace(0, len(layers) - 1, count)]
    if base.given is not None and len(chosen) < len(layers):
        raise UsageError(argument("site_map") + " describes all layers", fix="keep all layers")
    return chosen


def _compared(base: Base, student: Base, teacher: Adapter | None, done: Trained) -> Distillation:
    """Return the report of a student and its teacher, if any, without times."""
    from adapter_export.plugins.lab.student import compared

    models = [(student, student.base_head), *([] if teacher is None else [(base, teacher)])]
    part, measured = done.measured
    return compared(done.judged, [_costs(*each) for each in models], part, len(measured.lengths), done.record)


def _timed(report: Distillation, base: Base, teacher: Adapter, graph: Path, done: Trained) -> Distillation:
    """Return the report with the latency of both graphs for a row of median length."""
    import numpy as np

    from adapter_export.plugins.lab.student import time_student

    tokens = round(float(np.median(done.measured[1].lengths)))
    with temporary_folder() as folder:
        return time_student(report, base.exported(folder), teacher, graph, tokens)


def _costs(base: Base, adapter: Adapter | None) -> tuple[int, int]:
    """Return the layers and parameters of a base with an adapter."""
    from adapter_export.torch_backend.base.derive import layers_of

    return len(layers_of(base.sites.map)), base.parameters + (0 if adapter is None else adapter.cost().parameters)


def _plain(base: Base, folder: Path, examples: Examples) -> Path:
    """Write the student as plain ONNX, and compare it with torch."""
    import numpy as np

    from adapter_export.numerics.budget import budget, extent
    from adapter_export.numerics.runner import head_output
    from adapter_export.onnx_backend.base.external import write_model
    from adapter_export.onnx_backend.rewrite.insert import without_slots
    from adapter_export.runtime.graphs import open_session, run_session

    head, path = base.base_head, folder / "plain" / GRAPH
    assert head is not None  # the student has a head
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


def _write(base: Base, graph: Path, report: Distillation, output: Output) -> None:
    """Write the student, its graph and the report."""
    from adapter_export.format.files import canonical_json
    from adapter_export.torch_backend.base.torch_base import write_base

    with output.folder() as folder:
        write_base(base.torch, folder / STUDENT)
        for file in graph.parent.iterdir():
            shutil.copyfile(file, folder / file.name)
        (folder / REPORT).write_bytes(canonical_json(report.to_json()))


def _show(distillation: Distillation, screen: Screen) -> None:
    output = screen.given["output"]
    screen.show(distillation.table())
    for note in distillation.notes:
        screen.report("  " + note)
    screen.report(f"wrote {output}.")
    screen.report(f"Next: {next_line('build', output / STUDENT, '-o', 'bundle')}")


def _document(distillation: Distillation, screen: Screen) -> Mapping[str, object]:
    return {**distillation.to_json(), "warnings": list(screen.notes)}


COMMAND = Command(
    distil,
    _show,
    document=_document,
    examples=(
        "adapter-export distil model.pt --adapter adapters/trec --data train.tsv -o student",
        "adapter-export distil model.pt --adapter adapters/trec --data train.tsv --layers 3 --epochs 10 -o student",
        "adapter-export distil model.pt --adapter a --data train.tsv --unlabelled more.txt --hard 0.5 -o student",
        "adapter-export distil model.pt --data train.tsv -o tuned      # no teacher: full fine-tuning",
    ),
    sections=SECTIONS,
    common=("text", "label", "validation_data", "test_data", "epochs", "learning_rate"),
)
