"""Any number of contestants on the same labelled rows: the engine of `evaluate` and `compare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.ablation import effects, note_of
from adapter_export.errors import DataError, UsageError, within
from adapter_export.format.manifest import AdapterRecord
from adapter_export.format.tabular.eval_data import EvalData
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.tasks import Task
from adapter_export.graph.tasks.cells import some
from adapter_export.graph.tasks.metrics import Judged
from adapter_export.numerics.runner import Runner, run
from adapter_export.plugins.lab.eval_rows import EvalRows, Results, judge, read_rows
from adapter_export.plugins.lab.seen_rows import SeenRows
from adapter_export.reporting import SILENT, Part, Reporter
from adapter_export.runtime.answerer import Answerer, Reader, Row
from adapter_export.tables import number_of
from adapter_export.words import argument

_NAMED = 3
"""The most contestants whose unknown labels a message names."""


@dataclass(frozen=True)
class Contestant:
    """An adapter of a bundle, which answers rows in ONNX Runtime.

    Attributes:
        name: the name in tables and messages; no two contestants share one.
        source: the bundle, adapter or model as the caller gave it.
        bundle: the bundle.
        adapter: the name of the adapter in it.
        reader: makes inputs of texts, images or audio; contestants of one bundle share it.
    """

    name: str
    source: str
    bundle: OpenedBundle
    adapter: str
    reader: Reader

    @property
    def task(self) -> Task:
        """The task of the adapter.

        Raises:
            RequestError: it has none.
        """
        return self.bundle.runtime_session().answering(self.adapter)

    @property
    def record(self) -> AdapterRecord:
        """The entry of the adapter in the manifest."""
        return self.bundle.record(self.adapter)

    @property
    def original(self) -> Adapter:
        """The adapter as it was built in."""
        return self.bundle.source(self.adapter)

    def read(self, data: EvalData) -> EvalRows:
        """Read rows as inputs; errors as of `read_rows`."""
        return read_rows(data, self.reader, self.adapter, self.task)

    def inputs(self, rows: EvalRows) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield the inputs of each text in a batch of its own."""
        return (self.reader.arrays([row], self.adapter) for reading in rows.read for row in reading.rows)

    def answer(self, rows: EvalRows, reporter: Reporter) -> Results:
        """Return the results of each row, as it is answered without other rows.

        Raises:
            RequestError: the runtime cannot compute them.
        """
        requested = [Row(text, self.adapter) for text in rows.texts]
        answerer = Answerer(self.reader.session, self.reader)
        if not rows.columns:
            return [answer.results for answer in answerer.answer(requested, reporter)]
        distinct = dict.fromkeys(requested)  # documents belong to many anchors
        results = dict(
            zip(distinct, (answer.results for answer in answerer.answer(list(distinct), reporter)), strict=True)
        )
        return [results[row] for row in requested]


@dataclass(frozen=True)
class ReferenceContestant(Contestant):
    """The model that a bundle was built from, with an adapter of the bundle: each text in a call of its own.

    Attributes:
        runner: computes the model.
    """

    runner: Runner

    def answer(self, rows: EvalRows, reporter: Reporter) -> Results:
        """Return the results of the model; see `Contestant.answer`."""
        answers, output = list[list[np.ndarray]](), str(self.record.output)
        for count, reading in enumerate(rows.read, 1):
            results = []
            for row in reading.rows:
                arrays = self.reader.arrays([row], self.adapter)
                computed = run(self.runner, arrays, self.original, self.bundle.base_outputs, output)[output][0]
                results.append(self.reader.without_padding({output: computed}, row)[output])
            answers.append(results)
            reporter.step("", count, len(rows.read))
        return answers


@dataclass(frozen=True)
class Measured:
    """The answers of a contestant, compared with the labels.

    Attributes:
        contestant: the contestant.
        rows: the rows as it read them.
        results: the results of its head.
        judged: the comparison with the labels.
        seen: training rows among them; `None` if the training record names no data.
    """

    contestant: Contestant
    rows: EvalRows
    results: Results
    judged: Judged
    seen: SeenRows | None = None

    def notes(self) -> Iterator[str]:
        """Yield warnings on rows, answers and the adapter that limit the meaning of the scores, each a clause."""
        decisions = self.judged.decisions
        if self.seen is not None:
            yield from self.seen.notes(self.contestant.adapter)
        yield from self.rows.notes()
        yield from () if decisions is None or decisions.collapse is None else (decisions.collapse,)
        yield from filter(None, map(note_of, effects(self.contestant.bundle, [self.contestant.adapter])))


def common_task(contestants: Sequence[Contestant]) -> Task:
    """Return the task of contestants, which must have one problem type and one kind of input.

    Raises:
        UsageError: they differ.
    """
    tasks = [contestant.task for contestant in contestants]
    kinds: dict[tuple[str, str], str] = {}
    for contestant, task in zip(contestants, tasks, strict=True):
        kinds.setdefault((task.type, task.input), contestant.name)
    if len(kinds) > 1:
        raise UsageError(
            "contestants have different tasks",
            found=", ".join(f"`{name}` answers `{kind}` of `{modality}`" for (kind, modality), name in kinds.items()),
            expected="one task",
            fix="name the adapters to compare: " + argument("only", words="NAME") + ", as often as needed",
        )
    return tasks[0]


def measure(contestants: Sequence[Contestant], data: EvalData, reporter: Reporter = SILENT) -> list[Measured]:
    """Ask contestants of one task the same rows, and compare their answers with the labels.

    Everything is read before anything is computed, so a label or a text that does not fit is refused at once.

    Raises:
        UsageError, DataError, RequestError: the rows do not fit a contestant, or it cannot compute them.
    """
    read = [contestant.read(data) for contestant in contestants]
    _check_labels(contestants, data)
    total, finished, answers = sum(len(rows.read) for rows in read), 0, list[Results]()
    for contestant, rows in zip(contestants, read, strict=True):
        label = f"answering with `{contestant.name}`"
        reporter.step(label, finished, total)
        results = contestant.answer(rows, Part(reporter, label, finished, len(rows.read), total))
        answers.append(_truncated(contestant.task, results, data.dimensions))
        finished += len(rows.read)
    measured = []
    for contestant, rows, results in zip(contestants, read, answers, strict=True):
        with within(f"`{contestant.name}`"):
            seen = SeenRows.of(contestant.original.training, data, compared=data.compared)
            measured.append(Measured(contestant, rows, results, judge(rows, results), seen))
    return measured


def _truncated(task: Task, results: Results, dimensions: int | None) -> Results:
    """Return vectors with their first numbers only; RequestError if they were not trained for it."""
    if dimensions is None:
        return results
    return [[task.truncated(vector, dimensions) for vector in vectors] for vectors in results]


def _check_labels(contestants: Sequence[Contestant], data: EvalData) -> None:
    """Refuse labels that a contestant does not have; the message names all of these."""
    if len({(id(contestant.bundle), contestant.adapter) for contestant in contestants}) == 1:
        data.check_labels(contestants[0].task)
    unknown = {
        contestant.name: labels for contestant in contestants if (labels := data.unknown_labels(contestant.task))
    }
    if not unknown:
        return
    first = min(line for labels in unknown.values() for line in labels.values())
    where, fix = f"{data.path}, line {first}", "map the labels, or name their column: " + argument("label")
    knowing = [contestant for contestant in contestants if contestant.name not in unknown]
    alone = "name those that have them, such as " + argument("only", [knowing[0].adapter]) + ", " if knowing else ""
    more = len(unknown) - _NAMED
    raise DataError(
        "holds labels that not every contestant has",
        where=where,
        found="; ".join(f"`{name}` has no {some(labels)}" for name, labels in list(unknown.items())[:_NAMED])
        + (f"; {number_of(more, 'more contestant')}" if more > 0 else ""),
        expected="labels that all contestants have",
        fix=alone + fix,
    )
