"""Training run: the learner, rows, head, loop and machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from adapter_export.bases.base import Base
from adapter_export.errors import UsageError
from adapter_export.reporting import SILENT, Reporter
from adapter_export.tables import number_of
from adapter_export.training.loop.settings import LoopSpec, Machine, Schedule
from adapter_export.training.notes import (
    collapsed,
    not_better,
    rare,
    rare_classes,
    rare_recall,
    too_many_parameters,
    undecided,
)
from adapter_export.training.rows import RowReader
from adapter_export.training.specs import DataSpec, HeadSpec
from adapter_export.words import argument

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator

    from adapter_export.dtypes import Weights
    from adapter_export.format.tabular.language_tables import LanguageTables
    from adapter_export.format.tabular.training_tables import TrainingTables
    from adapter_export.graph.adapter import Adapter, Head
    from adapter_export.graph.tasks import Task, TaskFacts
    from adapter_export.graph.tasks.metrics import Judged
    from adapter_export.torch_backend.attach import AdaptedModel
    from adapter_export.training.loop.baseline import Baseline
    from adapter_export.training.loop.data import Examples
    from adapter_export.training.loop.distil_loop import Teacher
    from adapter_export.training.loop.language import LanguageExamples
    from adapter_export.training.loop.record import TrainingResult
    from adapter_export.training.loop.task_files import TextTask

_ROWS_MEASURED = 32
"""Maximum rows for measuring the initial change of the final hidden state."""


@dataclass(frozen=True)
class Start:
    """A model before the first step.

    Attributes:
        model: the model with the trainable tensors.
        facts: facts about the model for the training record.
        origin: origin of its initial weights, as a clause for a reporter.
        teacher: the teacher model with its loss; `None` if it learns from labels only.
        compared: models whose answers to the test rows, or validation rows, are compared after training.
    """

    model: AdaptedModel
    facts: Mapping[str, Any]
    origin: str
    teacher: Teacher | None = None
    compared: tuple[AdaptedModel, ...] = ()

    @property
    def pads(self) -> bool:
        """True if padding does not change results, so that rows of different lengths share a batch."""
        return self.model.pads and (self.teacher is None or self.teacher.model.pads)


class Learner(Protocol):
    """A trainable model: a new adapter, a fusion of adapters, or a student."""

    @property
    def task(self) -> Task | None:
        """Task of a teacher, which the run adopts; `None` if the head of the job defines it."""

    def begin(self, job: TrainingJob, rows: TextTask) -> Start:
        """Return the model before training, attached to the base of the job."""


@dataclass(frozen=True)
class FirstHead:
    """A head before training.

    Attributes:
        head: the head; `None` if the base predicts the next token.
        weights: weights of the base head, if the run starts from it.
        targets: labels as 0 and 1, [rows, classes] or [rows], from which its bias is initialized.
    """

    head: Head | None
    weights: Weights
    targets: np.ndarray | None = None

    def onto(self, adapter: Adapter) -> Adapter:
        """Return an adapter that has the head with these initial weights and this bias."""
        from adapter_export.training.loop.init_adapter import with_prior

        begun = adapter if self.targets is None else with_prior(adapter, self.targets)
        return replace(begun, weights={**begun.weights, **self.weights})


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        model: the model with the weights of the best epoch.
        rows: the training rows.
        result: epochs, losses and the best epoch.
        record: the training record, as JSON.
        judged: scores of each compared model on the test rows, or on the validation rows without a test file.
        writes: true in the process that writes.
    """

    model: AdaptedModel
    rows: TextTask
    result: TrainingResult
    record: dict[str, Any]
    judged: list[Judged]
    writes: bool

    @property
    def measured(self) -> tuple[str, Examples]:
        """The scored rows, and their split: `test` or `validation`."""
        return ("validation", self.rows.validation) if self.rows.test is None else ("test", self.rows.test)


@dataclass(frozen=True)
class TrainingJob:
    """A training run of a base.

    Attributes:
        base: a base that torch can train.
        learner: the model to train.
        data: the files of the rows, and options for reading them.
        head: the task, and its head.
        loop: settings of the loop, except for its schedule.
        schedule: length of the run, which depends on the rows.
        machine: device, precision and trackers.
        checkpoints: folder of an interrupted run, beside the logs of trackers; `None` keeps no checkpoints.
        tables: the rows, if they were read before the base is opened.
    """

    base: Base
    learner: Learner
    data: DataSpec
    head: HeadSpec
    loop: LoopSpec
    schedule: Schedule
    machine: Machine
    checkpoints: Path | None = None
    tables: TrainingTables | LanguageTables | None = None

    def run(self, reporter: Reporter = SILENT) -> Trained:
        """Read the rows, train, and score the best epoch.

        Raises:
            UsageError: arguments conflict.
            BaseModelError: the base cannot be trained this way.
            DataError: the data cannot be used.
            TrainingError: the loss is not finite, memory is exhausted, or the interrupted run has other settings.
        """
        from adapter_export.sites.site_map import SITE_MAP_KEY, check_complete
        from adapter_export.training.loop.data import TrainingData
        from adapter_export.training.loop.devices import Engine
        from adapter_export.training.loop.measure import judged
        from adapter_export.training.loop.record import training_record
        from adapter_export.training.loop.train_loop import answer_examples, score_answers
        from adapter_export.training.loop.train_loop import train as learn

        engine = Engine(self.machine, *([] if self.checkpoints is None else [self.checkpoints.with_suffix(".logs")]))
        reporter = reporter if engine.first else _Mute()
        with engine.open() as accelerator:
            check_complete(self.base.sites.map, self.base.given)  # fail before reading rows, which is slow
            reader = RowReader.of(self.base, self.data, self.head, self.learner.task, self.tables)
            rows = reader.read(self.loop.seed, reporter)
            _note(reporter, rows.notes)
            few = rare_classes(rows)
            _note(reporter, rare(few))
            start = self._started(reader, rows, reporter)
            _note(reporter, too_many_parameters(start, len(rows.training.texts)))
            facts, origin = self._described(start, rows)
            reporter.step(f"{_counts(rows)}; {origin}")
            loop = self._loop(rows, accelerator)
            model = start.model.on(accelerator.device)
            if start.teacher is not None:
                start.teacher.model.on(accelerator.device)
            baseline = self._baseline(start, rows, loop, accelerator, reporter)
            result = learn(
                model,
                TrainingData(rows.training, rows.validation),
                loop,
                checkpoints=self.checkpoints,
                accelerator=accelerator,
                teacher=start.teacher,
                reporter=reporter,
            )
            _note(reporter, undecided(result.best.validation))
            test, measured = None, rows.validation if rows.test is None else rows.test
            recall: dict[str, tuple[int, int]] = {}
            if rows.test is not None or baseline is not None or few:
                order, results, targets = answers = answer_examples(model, measured, loop, accelerator)
                test = None if rows.test is None else score_answers(model, measured, loop, answers)
                ours = judged(model.task, results, targets, measured.only(order))
                if baseline is not None:
                    _note(reporter, not_better(ours, baseline, result, loop))
                recall = {} if ours.decisions is None else {label: ours.decisions.recall(label) for label in few}
                _note(reporter, rare_recall(recall, "validation" if rows.test is None else "test"))
            facts |= {} if reader.generates else {"padding_neutral": start.pads}
            facts |= {} if self.base.given is None else {SITE_MAP_KEY: self.base.given.digest}
            done = Trained(
                model,
                rows,
                result,
                training_record(loop, {**facts, **reader.record()}, rows, result, test)
                | ({} if baseline is None else {"baseline": baseline.document()})
                | ({"rare": {label: [few[label], *recall[label]] for label in recall}} if recall else {}),
                [],
                accelerator.is_main_process,
            )
            return replace(done, judged=self._judged(start, done, loop, accelerator, reporter))

    def finish(self, done: Trained, output: Path, title: str, reporter: Reporter) -> None:
        """Draw the learning curve into the output folder, if matplotlib is installed, and remove the checkpoints."""
        from adapter_export.training.loop.record import CURVE_FILE
        from adapter_export.training.objectives import OBJECTIVES

        loss_name = OBJECTIVES[done.rows.problem].loss_name
        if find_spec("matplotlib") is None:
            (output / CURVE_FILE).unlink(missing_ok=True)
            reporter.warn("no learning curve: matplotlib is not installed (`pip install 'adapter-export[plot]'`)")
        else:
            from adapter_export.training.loop.learning_curve import draw_curve

            draw_curve(done.result, title, output / CURVE_FILE, loss_name=loss_name)
        if self.checkpoints is not None:
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def first_head(self, rows: TextTask) -> FirstHead:
        """Return the head before training: a new one for the rows, or the base head."""
        from adapter_export.graph.tasks import TASK_TYPES

        kind = TASK_TYPES[rows.problem]
        if not kind.has_head:
            return FirstHead(None, {})
        _check_head_input(kind, self.base)
        new = self.head.make(rows, self.base.sites.complete.width, self.data)
        head, weights = init_from_base_head(self.base, new) if self.head.head == "base" else (new, {})
        return FirstHead(head, weights, rows.training.answers if kind.starts_at_prior else None)

    def _started(self, reader: RowReader, rows: TextTask, reporter: Reporter) -> Start:
        """Attach the learner, and reject rows that the base cannot process."""
        from adapter_export.training.loop.language import check_causal

        start = self.learner.begin(self, rows)
        if reader.generates:
            check_causal(start.model, cast("LanguageExamples", rows.training))
        else:
            _note(reporter, reader.check_padding(rows, pads=start.pads))
        return start

    def _described(self, start: Start, rows: TextTask) -> tuple[dict[str, Any], str]:
        """Return facts about the start for the record, and a clause on the initial change of the final hidden state."""
        import numpy as np

        from adapter_export.training.loop.init_adapter import relative_change
        from adapter_export.training.loop.memory import passes

        adapter, examples = start.model.adapter, rows.training
        if adapter is None or not adapter.placements:  # a student, whose weights are the base's
            return dict(start.facts), start.origin
        places = np.arange(min(_ROWS_MEASURED, self.loop.batch_size, len(examples.texts)))
        places = passes(start.model, examples, places)[0]
        change = relative_change(start.model, next(examples.calls(places, pads=start.model.pads)).inputs)
        clause = f"initial change of the final hidden state: {change:.2%} ({start.origin})"
        return {**start.facts, "initial_change": change}, clause

    def _loop(self, rows: TextTask, accelerator: Accelerator) -> LoopSpec:
        """Return the settings of the loop with its schedule and precision, and balanced class weights as numbers."""
        from adapter_export.training.loop.data import balanced

        loop = self.schedule.loop(self.loop, len(rows.training.texts))
        loop = replace(loop, precision=accelerator.mixed_precision)
        if loop.class_weights != "balanced":
            return loop
        return replace(loop, class_weights=balanced(rows.training, rows.labels))

    def _baseline(
        self, start: Start, rows: TextTask, loop: LoopSpec, accelerator: Accelerator, reporter: Reporter
    ) -> Baseline | None:
        """Score the base without an adapter, unless the run is quick, or all weights are trained."""
        from adapter_export.training.loop.baseline import score_baseline

        if self.schedule.quick or start.compared or start.model.head_name is None:
            return None
        reporter.step("scoring the base without an adapter")
        return score_baseline(self.base, start.model.task, rows, self.head.pooling, loop, accelerator)

    def _judged(
        self, start: Start, done: Trained, loop: LoopSpec, accelerator: Accelerator, reporter: Reporter
    ) -> list[Judged]:
        """Score each compared model; warn if vectors are nearly identical."""
        from adapter_export.graph.tasks import TASK_TYPES
        from adapter_export.training.loop.measure import cosine_apart, judged
        from adapter_export.training.loop.train_loop import answer_examples
        from adapter_export.training.objectives import OBJECTIVES

        if TASK_TYPES[done.rows.problem].is_vector:
            _, results, targets = answer_examples(done.model, done.rows.validation, loop, accelerator)
            vectors = OBJECTIVES[done.rows.problem].vectors(results, targets)
            _note(reporter, () if vectors is None else collapsed(cosine_apart(*vectors)))
        (_, measured), found = done.measured, []
        for model in start.compared:
            order, results, targets = answer_examples(model, measured, loop, accelerator)
            found.append(judged(model.task, results, targets, measured.only(order)))
        return found


class _Mute(Reporter):
    """Ignores reports of all processes except the first."""

    def warn(self, text: str) -> None:
        """Ignore it."""


def _note(reporter: Reporter, notes: Iterator[str] | tuple[str, ...]) -> None:
    for note in notes:
        reporter.warn(note)


def _check_head_input(kind: TaskFacts, base: Base) -> None:
    """Refuse a sparse embedding on a base without logits of the vocabulary, and other heads on one with them."""
    has_logits = base.torch.flow.head_input is not None
    if kind.reads_vocabulary == has_logits:
        return
    if has_logits:
        what, fix = (
            "heads of this base read logits of the vocabulary",
            "capture the bare model: " + argument("bare", True),
        )
        raise UsageError(what, found=f"the task `{kind.name}`", expected="`sparse_embedding`", fix=fix)
    raise UsageError(
        f"`{kind.name}` needs logits of the vocabulary, which this base does not compute",
        where=base.path,
        found="a hidden state",
        expected="a masked language model with a `SpladePooling`, captured from a folder of sentence-transformers",
    )


def _counts(rows: TextTask) -> str:
    from adapter_export.graph.tasks import TASK_TYPES

    parts = (("training", rows.training), ("validation", rows.validation))
    counts = ", ".join(number_of(len(examples.texts), f"{name} row") for name, examples in parts)
    task = TASK_TYPES[rows.problem].recorded or rows.problem
    return (
        f"{counts}, {number_of(len(rows.labels), 'class', 'classes')}"
        if rows.labels
        else f"{counts}, the task `{task}`"
    )


def init_from_base_head(base: Base, new: Head) -> tuple[Head, Weights]:
    """Return the base head for the task of a new head, and its tensors, with classes in the order of the data.

    Raises:
        UsageError: the base has no head with a task, or one for another task.
    """
    from adapter_export.graph.adapter import HEAD
    from adapter_export.graph.heads import embedding_facts
    from adapter_export.graph.tasks import CLASSES

    known, wanted = base.base_head, new.task
    if known is None or known.head is None or known.head.task is None or wanted is None:
        found = "; " + base.notes[0] if base.notes else ""
        raise UsageError(
            "the base has no head to start from",
            where=argument("head", "base"),
            found="no head with a task" + found,
            fix="remove the option to start from a random head",
        )
    head, task = known.head, known.head.task
    if task.type != wanted.type or set(task.labels) != set(wanted.labels) or _results(head) != _results(new):
        raise UsageError(
            "the base head's task does not match the data",
            where=argument("head", "base"),
            found=f"a head for `{task.type}`, {', '.join(task.labels) or _results(head)}",
            expected=f"`{wanted.type}`, {', '.join(wanted.labels) or _results(new)}",
            fix="rename the labels in the data, or start from a random head",
        )
    order = [task.labels.index(label) for label in wanted.labels]
    weights = {
        f"{HEAD}.{name}": known.weights[f"{HEAD}.{name}"][..., order]
        if order and shape[-1] == CLASSES
        else known.weights[f"{HEAD}.{name}"]
        for name, shape in head.graph.parameters.items()
    }
    facts: Mapping[str, Any] = embedding_facts(head.graph) if wanted.kind.embeds else {}
    return replace(head, task=replace(wanted, **facts)), weights


def _results(head: Head) -> int:
    """Return the number of outputs of a head; 0 for a vector, which may have any width."""
    from adapter_export.graph.tasks import CLASSES

    return head.widths.get(CLASSES, 0)
