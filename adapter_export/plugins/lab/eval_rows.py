"""Labelled rows, read as inputs of an adapter, and the judgement of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adapter_export.errors import DataError, within
from adapter_export.format.tabular.eval_data import EvalData
from adapter_export.format.tabular.labelled import LabelledFile, LabelledRow
from adapter_export.format.tabular.table_faults import lines_of
from adapter_export.graph.tasks import HEAD_TYPES, ProblemType, Task
from adapter_export.graph.tasks.answers import ReadText
from adapter_export.graph.tasks.metrics import Indices, Judged, judge_similarities
from adapter_export.graph.tasks.task_type import Measured
from adapter_export.modalities import FILE_MODALITIES
from adapter_export.runtime.answerer import Reader
from adapter_export.tables import number_of, one_line, verb_for
from adapter_export.text import Pair, SidedText, TextSide

Results = Sequence[Sequence[np.ndarray]]
"""For each row that was read the results of the head: one, or one for each choice."""

_LONGEST = 80


@dataclass(frozen=True)
class EvalRows:
    """Labelled rows, read as inputs of an adapter.

    Attributes:
        rows: the rows.
        task: the task of the adapter.
        read: the inputs: one item for each row, or where vectors of several texts of a row are compared, all first
            texts, then all second texts, and so on.
        problem: the type that judges them.
        columns: where vectors are compared, the texts of each row; empty otherwise.
        groups: for a ranking, the group of each row.
    """

    rows: tuple[LabelledRow, ...]
    task: Task
    read: tuple[ReadText, ...]
    problem: ProblemType
    columns: tuple[tuple[Any, ...], ...] = ()
    groups: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """The number of texts of each row that are read by themselves."""
        return len(self.columns[0]) if self.columns else 1

    @property
    def texts(self) -> list[Any]:
        """The input of each item of `read`, before it was read."""
        if self.columns:
            return [
                self._sided(row[at], "document" if at else "query") for at in range(self.width) for row in self.columns
            ]
        return list(map(_text, self.rows))

    def _sided(self, text: Any, side: TextSide) -> Any:
        return SidedText(text, side) if self.task.has_sides else text

    def only(self, rows: Indices, results: Results) -> tuple[EvalRows, Results]:
        """Return some of the rows, with their results."""
        at = [row + column * len(self.rows) for column in range(self.width) for row in rows]
        part = replace(
            self,
            rows=tuple(self.rows[row] for row in rows),
            read=tuple(self.read[index] for index in at),
            columns=tuple(self.columns[row] for row in rows) if self.columns else (),
            groups=tuple(self.groups[row] for row in rows) if self.groups else (),
        )
        return part, [results[index] for index in at]

    def distinct(self) -> Indices:
        """Return the rows that do not repeat an earlier one, as training keeps them."""
        seen: dict[Any, int] = {}
        for at, row in enumerate(self.rows):
            seen.setdefault((row.text, row.pair, row.answer), at)
        return np.array(list(seen.values()), np.int64)

    def usual(self) -> int:
        """Return the place of a row of usual length: the median of their tokens; the first of files."""
        lengths = [self.tokens(at) or 0 for at in range(len(self.read))]
        return sorted(range(len(lengths)), key=lengths.__getitem__)[len(lengths) // 2] if any(lengths) else 0

    def tokens(self, at: int) -> int | None:
        """Return the number of tokens of a row; `None` for a file."""
        return None if self.task.input in FILE_MODALITIES else len(self.read[at].rows[0].encoding.ids)

    def notes(self) -> Iterator[str]:
        """Yield facts about the rows that limit the meaning of scores."""
        places = self.rows * self.width
        lines = list(dict.fromkeys(row.line for row, reading in zip(places, self.read, strict=True) if reading.cut))
        cut = sum(reading.cut > 0 for reading in self.read)
        clause = f"cut there, as every client cuts {'it' if cut == 1 else 'them'} ({lines_of(lines)})"
        if cut and self.task.input in FILE_MODALITIES:
            word = FILE_MODALITIES[self.task.input].word
            yield f"{number_of(cut, word)} {verb_for(cut, 'are')} longer than the model reads and {clause}"
        elif cut:
            limit = max(len(row.encoding.ids) for reading in self.read if reading.cut for row in reading.rows)
            yield f"{number_of(cut, 'text')} {verb_for(cut, 'are')} longer than {limit} tokens and {clause}"
        if self.task.kind.one_label and len(self.rows) > 1 and len({row.answer for row in self.rows}) == 1:
            yield f"every row has the label `{self.rows[0].answer}`: the scores say nothing of the other classes"


@dataclass(frozen=True)
class DifferingRow:
    """A row whose answers differ.

    Attributes:
        line: its line in the file, from 1.
        text: its text.
        right: its label.
        answers: the answers of the contestants, in their order.
    """

    line: int
    text: str
    right: Any
    answers: tuple[Any, ...]


def read_rows(data: EvalData, reader: Reader, adapter: str, task: Task) -> EvalRows:
    """Read labelled rows as inputs of an adapter.

    Raises:
        UsageError: the task takes pairs and the rows have one text, or the reverse.
        RequestError: a text cannot be read.
    """
    data.check_pairs(task, adapter)
    columns = tuple(map(data.texts, data.rows)) if data.compared else ()
    rows = EvalRows(data.rows, task, (), data.problem, columns, data.groups)
    texts, places = rows.texts, [f"line {row.line}" for row in data.rows] * rows.width
    read = reader.read(texts, adapters=[adapter] * len(texts), long="cut", stride=None, places=places)
    return replace(rows, read=tuple(read))


def _text(row: LabelledRow) -> Any:
    if isinstance(row.text, LabelledFile):
        return row.text.path
    if row.pair is None or not isinstance(row.text, str):
        return row.text
    return Pair(row.text, row.pair) if isinstance(row.pair, str) else [Pair(row.text, choice) for choice in row.pair]


def judge(examples: EvalRows, results: Results) -> Judged:
    """Compare results with the labels, all of which the adapter has.

    Raises:
        DataError: a result is NaN or infinite, or a row has another number of numbers than the head.
    """
    task, right = examples.task, [row.answer for row in examples.rows]
    for row, outputs in zip(examples.rows * examples.width, results, strict=True):
        if not all(np.isfinite(result).all() for result in outputs):
            raise DataError("the answer is NaN or infinite", where=f"line {row.line}", fix="run `verify` on the bundle")
    kind = HEAD_TYPES[examples.problem]
    if examples.columns:
        pairs = zip(examples.read, results, strict=True)
        parts = [task.kind.compared(reading, task, outputs) for reading, outputs in pairs]
        if not kind.has_answers:
            rows = [parts[at :: len(examples.rows)] for at in range(len(examples.rows))]
            return kind.judge(task, Measured(rows, examples.columns))
        vectors = np.stack(parts).astype(np.float64)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
        first, second = np.split(unit, 2)
        return judge_similarities((first * second).sum(-1), _similarities(examples))
    for row, outputs in zip(examples.rows, results, strict=True):
        with within(f"line {row.line}"):
            kind.check_right(row.answer, outputs[0])
    measured = kind.measured(examples.read, results, kind.truths(right, task.labels, "the rows"))
    judged = kind.judge(task, replace(measured, groups=examples.groups))
    return replace(judged, notes=(*judged.notes, *measured.notes))


def _similarities(examples: EvalRows) -> Any:
    """Return the number of each pair [rows]."""
    for row in examples.rows:
        if len(row.answer) != 1:
            shown = number_of(len(row.answer), "number")
            raise DataError("has another number of numbers", where=f"line {row.line}", found=shown, expected=1)
    return np.array([row.answer[0] for row in examples.rows], np.float64)


def shown_text(row: LabelledRow) -> str:
    """Return the texts of a row in one line."""
    if isinstance(row.text, LabelledFile):
        return str(row.text)
    parts = [row.text] if row.pair is None else [row.text, row.pair]
    return " | ".join(part if isinstance(part, str) else " ".join(part) for part in parts)


def cut(value: object) -> str:
    """Return a text or an answer as tables show it."""
    return one_line(value, _LONGEST)
