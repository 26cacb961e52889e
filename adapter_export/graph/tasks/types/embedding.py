"""A vector for each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_export.graph.task_names import RETRIEVAL
from adapter_export.graph.tasks.answers import Answer, ShownRow, Vector
from adapter_export.graph.tasks.cells import Cells, Found, label
from adapter_export.graph.tasks.labels import class_indices, label_names
from adapter_export.graph.tasks.task_type import Mask, Measured, TaskType
from adapter_export.tables import Table, numbers_cell

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged, Metric
    from adapter_export.graph.tasks.task_record import Task


_TINY = 1e-12
"""Minimum length that a vector is divided by."""


class VectorType(TaskType):
    """A task whose head returns a vector."""

    output = "embedding"
    activations = ("identity",)
    embeds = is_vector = True

    def answer(self, task: Task, result: np.ndarray, real: Mask, context: Mask | None) -> Vector:  # noqa: ARG002
        """Return the vector [width]."""
        return Vector(result)

    def mean(self, task: Task, results: Sequence[np.ndarray]) -> np.ndarray:
        """Return the mean of the vectors of windows, of length 1 if the task says so."""
        middle = np.mean([task.activated(result) for result in results], axis=0)
        length = float(np.linalg.norm(middle))
        mean: np.ndarray = (middle / length if task.normalised and length > 0 else middle).astype(results[0].dtype)
        return mean

    def similarity(self, query: Answer, document: Answer) -> float:
        """Return the cosine."""
        assert isinstance(query, Vector)
        assert isinstance(document, Vector)
        lengths = [max(float(np.linalg.norm(each.vector)), _TINY) for each in (query, document)]
        return float(np.dot(query.vector / np.float32(lengths[0]), document.vector / np.float32(lengths[1])))

    def cells(self, row: ShownRow) -> tuple[str, str, str]:
        """Return the first numbers of the vector."""
        answer = row.text_answer.answer
        assert isinstance(answer, Vector)
        return numbers_cell(answer.vector.tolist()), "", ""

    def tables(self, rows: Sequence[ShownRow]) -> Iterator[Table | str]:
        """Yield the width, the length and the beginning of each vector."""
        cells = []
        for row in rows:
            answer = row.text_answer.answer
            assert isinstance(answer, Vector)
            length = f"{float(np.linalg.norm(answer.vector)):.4g}"
            cells.append((row.name, len(answer.vector), length, self.cells(row)[0]))
        yield Table(("text", "width", "length", "vector"), cells, numbers="lrr")


class Embedding(VectorType):
    """A vector; texts of one label, or anchors and their documents, are trained to be near each other."""

    name = "embedding"
    reads_files = stratified = compares_pairs = True
    pairs = "never"
    of_pairs = RETRIEVAL
    method = "embed"
    pipeline = "sentence-similarity"

    def read(self, cells: Cells) -> Found:
        """Return the text of a row and its label."""
        return cells.with_answer(label(cells.label, cells.where))

    def label_names(self, answers: Sequence[Any], where: str, *, split: bool) -> tuple[str, ...]:  # noqa: ARG002
        """Return the labels; a row is compared with another of its label."""
        return label_names(answers, where)

    def encode(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:
        """Return classes [rows]."""
        return class_indices(answers, labels, where)

    def truths(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:  # noqa: ARG002
        """Return the labels themselves, which may be others than those of training."""
        return answers

    def metrics(self, labels: Sequence[str]) -> tuple[Metric, ...]:  # noqa: ARG002
        """Return the accuracy of the nearest other row."""
        from adapter_export.graph.tasks.metrics import NEIGHBOURS

        return NEIGHBOURS

    def judge(self, task: Task, rows: Measured) -> Judged:  # noqa: ARG002
        """Judge vectors [rows, width] by the classes of their nearest rows."""
        from adapter_export.graph.tasks.metrics import judge_neighbours

        return judge_neighbours(np.stack(rows.results).astype(np.float64), [str(label) for label in rows.right])


TYPE = Embedding()
