"""One of several choices for each question; each choice is a row of the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_export.errors import DataError
from adapter_export.graph.tasks.answers import (
    Choice,
    ReadText,
    Score,
    ShownRow,
    TextAnswer,
    is_choices,
    softmax,
)
from adapter_export.graph.tasks.cells import Cells, Found, choices, short, some, text_cell
from adapter_export.graph.tasks.task_type import Mask, Measured, TaskType
from adapter_export.tables import probability_cells

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged, Metric
    from adapter_export.graph.tasks.task_record import Task


class MultipleChoice(TaskType):
    """The best of several choices: that of the highest score."""

    name = "multiple_choice"
    width = 1
    pairs = "required"
    has_choices = has_several = True
    column = "choice"
    pipeline = "multiple-choice"
    model_classes = ("ForMultipleChoice",)
    adapterhub_heads = ("multiple_choice",)

    def read(self, cells: Cells) -> Found:
        """Return a question, its choices, and the number of the right one."""
        question, right = text_cell(cells.text), cells.label
        options = choices(cells.pair, cells.where)
        if question is None or options is None or right is None or right != right or right == "":
            return None
        if isinstance(right, str) and right.strip() in options:
            right = options.index(right.strip())
        if isinstance(right, bool | str) or right not in range(len(options)):
            raise DataError(
                "the answer is none of the choices",
                where=cells.where,
                found=f"`{short(right)}`; the choices are {some(options)}",
                expected=f"the text of one of them, or a JSON number from 0 to {len(options) - 1}",
            )
        return question, options, int(right)

    def encode(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:  # noqa: ARG002
        """Return the numbers of the right choices [rows]."""
        return np.array(answers, np.int64)

    def group(self, text: Any) -> str:
        """Return the question."""
        return str(text[0].first)

    def answer(self, task: Task, result: np.ndarray, real: Mask, context: Mask | None) -> Score:  # noqa: ARG002
        """Return the score of one choice."""
        return Score(float(result[0]))

    def answer_text(self, read: ReadText, task: Task, results: Sequence[np.ndarray]) -> TextAnswer:
        """Return the best choice of a question, or the score of a single pair."""
        if not is_choices(read.text):
            return super().answer_text(read, task, results)
        scores = [answer.score for answer in map(task.answer, results) if isinstance(answer, Score)]
        shares = softmax(np.array(scores))
        return TextAnswer(Choice(int(shares.argmax()), tuple(shares.tolist())), read.cut)

    def metrics(self, labels: Sequence[str]) -> tuple[Metric, ...]:  # noqa: ARG002
        """Return the accuracy."""
        from adapter_export.graph.tasks.metrics import CHOICES

        return CHOICES

    def measured(self, read: Sequence[ReadText], results: Sequence[Sequence[np.ndarray]], right: Any) -> Measured:  # noqa: ARG002
        """Return the scores of the choices of each question."""
        return Measured([np.concatenate(of_question).astype(np.float64) for of_question in results], right)

    def judge(self, task: Task, rows: Measured) -> Judged:  # noqa: ARG002
        """Judge scores [choices] of each question by the right choices [rows]."""
        from adapter_export.graph.tasks.metrics import judge_choices

        return judge_choices(rows.results, np.asarray(rows.right))

    def cells(self, row: ShownRow) -> tuple[str, str, str]:
        """Return the choice and its probability; for a single pair its score."""
        answer = row.text_answer.answer
        if isinstance(answer, Score):
            return f"{answer.score:.4f}", "", ""
        assert isinstance(answer, Choice)
        return row.choices[answer.choice], *probability_cells(answer.probabilities[answer.choice])


TYPE = MultipleChoice()
