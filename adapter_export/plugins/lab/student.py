"""Reports of a distillation: agreement, scores, sizes and latencies of a student and its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapter_export.bundle.latency import Latency, ratio, sample, slots_call, times
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.tasks.metrics import Judged
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.plugins.lab.scores import Score, score
from adapter_export.runtime.graphs import open_session
from adapter_export.tables import Described, Table, html_of, size

WORTH = 1.1
"""Latency of the graph with slots, relative to the base, below which removing the adapters saves next to nothing."""


@dataclass(frozen=True)
class Side:
    """The student or the teacher.

    Attributes:
        name: `teacher` or `student`.
        layers: the number of its layers.
        parameters: of base, adapter and head.
        bytes: of them, in float32.
        scores: by metric, with 95 % intervals.
        speed: the latency of the teacher over its own; null without times.
    """

    name: str
    layers: int
    parameters: int
    bytes: int
    scores: Mapping[str, Score]
    speed: Latency | None = None


@dataclass(frozen=True, repr=False)
class Distillation(Described):
    """The result of a distillation, or of full fine-tuning; `print` and notebooks show it.

    Attributes:
        student: the trained student.
        teacher: the model it learnt from; null where it learnt from labels only.
        part: of the rows of the scores: `test` or `validation`.
        rows: the number of these rows.
        agreement: the fraction of the rows that both answer alike; null where answers are numbers.
        overhead: the latency of the graph with slots and the teacher's adapter, relative to its base.
        tokens: in the row that is timed; null without times.
        folder: of the student; null if it was not written.
        training: the record of the run, which is also in the student's head.
        notes: conclusions from the numbers, in sentences.
    """

    student: Side
    teacher: Side | None
    part: str
    rows: int
    agreement: float | None
    overhead: Latency | None
    tokens: int | None
    folder: Path | None
    training: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        facts: dict[str, object] = {"folder": self.folder, "part": self.part, "rows": self.rows}
        return {**facts, "has_teacher": self.teacher is not None}

    def table(self) -> Table:
        """Return a row for each side."""
        sides = [self.student] if self.teacher is None else [self.teacher, self.student]
        columns = ["", "layers", "parameters", "bytes", *self.student.scores]
        rows = []
        for side in sides:
            scores = [f"{score} ({score.interval})" for score in side.scores.values()]
            row = [side.name, f"{side.layers}", f"{side.parameters:,}", size(side.bytes), *scores]
            rows.append([*row, *([] if self.teacher is None else [str(side.speed or "1.00")])])
        columns += [] if self.teacher is None else ["speed"]
        title = f"{self.rows:,} {self.part} rows"
        return Table(columns, rows, title, numbers="l" + "r" * (len(columns) - 1))

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        return {**asdict(self), "folder": None if self.folder is None else str(self.folder)}

    def __str__(self) -> str:
        return "\n".join([str(self.table()), *self.notes])

    def _repr_html_(self) -> str:
        return html_of(self.table(), *self.notes)


def compared(
    judged: Sequence[Judged], costs: Sequence[tuple[int, int]], part: str, rows: int, training: Mapping[str, Any]
) -> Distillation:
    """Compare a student with its teacher, if there is one.

    Args:
        judged: the student's rows, and the teacher's.
        costs: the layers and the parameters of each.
        part: of the rows.
        rows: their number.
        training: the record of the run.
    """
    sides = [
        Side(name, layers, parameters, 4 * parameters, score(judgement))
        for name, judgement, (layers, parameters) in zip(("student", "teacher"), judged, costs, strict=False)
    ]
    student, teacher = sides[0], sides[1] if len(sides) > 1 else None
    agreed = None if teacher is None or judged[0].numeric else _agreement(*judged)
    notes, first = [], judged[0].metrics[0].name
    if teacher is not None:
        reached, whole = (side.scores[first].value for side in (student, teacher))
        if reached is not None and whole and judged[0].metrics[0].more_is_better:
            notes.append(f"the student has {reached / whole:.1%} of its teacher's {judged[0].metrics[0].words}")
    if agreed is not None:
        notes.append(f"both answer {agreed:.1%} of the rows alike")
    return Distillation(student, teacher, part, rows, agreed, None, None, None, training, tuple(notes))


def _agreement(student: Judged, teacher: Judged) -> float:
    return float(np.mean([mine == theirs for mine, theirs in zip(student.answers, teacher.answers, strict=True)]))


def time_student(report: Distillation, base: OnnxBase, adapter: Adapter, graph: Path, tokens: int) -> Distillation:
    """Time the student's graph, the teacher's base and its graph with slots in ONNX Runtime: one row, calls in turns.

    Raises:
        RequestError: ONNX Runtime cannot compute such a row.
    """
    inputs = sample(base.inputs, 1, tokens, base.lengths)
    with slots_call(base, adapter, adapter, inputs) as slots:
        seconds = times((open_session(graph, threads=1), inputs), (open_session(base.path, threads=1), inputs), slots)
    speed, overhead = ratio(seconds, 2, 0), ratio(seconds, 2, 1)
    notes = [
        f"speed: {speed} times that of the teacher",
        f"latency of the graph with slots: {overhead} times that of its base",
    ]
    assert report.teacher is not None  # whose adapter this is
    if report.student.layers == report.teacher.layers and overhead.ratio < WORTH:
        notes.append(
            "a student with as many layers can save no more than that, so distillation does not pay: use fewer layers, "
            "or keep the adapter, which can be swapped"
        )
    return replace(
        report,
        student=replace(report.student, speed=speed),
        overhead=overhead,
        tokens=tokens,
        notes=(*report.notes, *notes),
    )
