"""Numbers for each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_export.errors import DataError
from adapter_export.graph.tasks.answers import Numbers, ShownRow
from adapter_export.graph.tasks.cells import Cells, Found, numbers
from adapter_export.graph.tasks.task_type import Mask, Measured, TaskType
from adapter_export.tables import Table, number_of, numbers_cell

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged, Metric
    from adapter_export.graph.tasks.task_record import Task


class Regression(TaskType):
    """One number or several; they fill the logits, so that they share a head's slots with classifications."""

    name = "regression"
    activations = ("identity", "sigmoid")
    reads_files = True
    method = "predict"
    config_name = "regression"

    def read(self, cells: Cells) -> Found:
        """Return the texts of a row and its numbers."""
        return cells.with_answer(numbers(cells.label, cells.where))

    def encode(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:  # noqa: ARG002
        """Return numbers [rows, numbers]."""
        counts = sorted({len(row) for row in answers})
        if len(counts) > 1:
            lengths = ", ".join(map(str, counts))
            raise DataError("rows have different numbers of numbers", where=where, found=lengths, expected="one")
        return np.array(answers, np.float32)

    def numbers(self, answers: Sequence[Any]) -> int:
        """Return how many numbers a row has."""
        return len(answers[0])

    def answer(self, task: Task, result: np.ndarray, real: Mask, context: Mask | None) -> Numbers:  # noqa: ARG002
        """Return the numbers after the activation."""
        return Numbers(task.activated(result))

    def metrics(self, labels: Sequence[str]) -> tuple[Metric, ...]:  # noqa: ARG002
        """Return correlations, R² and the mean absolute error."""
        from adapter_export.graph.tasks.metrics import NUMBERS

        return NUMBERS

    def check_right(self, answer: Any, result: np.ndarray) -> None:
        """Raise DataError if a row has another number of numbers than the head gives."""
        if len(answer) != len(result):
            raise DataError(
                "has another number of numbers", found=number_of(len(answer), "number"), expected=len(result)
            )

    def judge(self, task: Task, rows: Measured) -> Judged:
        """Judge numbers [rows, numbers]."""
        from adapter_export.graph.tasks.metrics import judge_numbers

        return judge_numbers(task.activated(np.stack(rows.results)), np.asarray(rows.right, np.float64))

    def cells(self, row: ShownRow) -> tuple[str, str, str]:
        """Return the first of the numbers."""
        answer = row.text_answer.answer
        assert isinstance(answer, Numbers)
        return numbers_cell(answer.numbers.tolist()), "", ""

    def tables(self, rows: Sequence[ShownRow]) -> Iterator[Table | str]:
        """Yield a column for each number."""
        answers = [
            (row.name, row.text_answer.answer.numbers) for row in rows if isinstance(row.text_answer.answer, Numbers)
        ]
        count = len(answers[0][1])
        columns = ["number"] if count == 1 else [f"number {place}" for place in range(count)]
        cells = [[name, *(f"{number:.6g}" for number in values)] for name, values in answers]
        yield Table(("text", *columns), cells, numbers="l" + "r" * count)


TYPE = Regression()
