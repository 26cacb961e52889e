"""A score for how well two texts go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_export.errors import DataError
from adapter_export.graph.tasks.answers import Score, ShownRow
from adapter_export.graph.tasks.cells import Cells, Found, numbers, short, text_cell
from adapter_export.graph.tasks.task_type import Mask, Measured, TaskType
from adapter_export.tables import number_of

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged, Metric
    from adapter_export.graph.tasks.task_record import Task


class Ranking(TaskType):
    """Relevance of a document to a query, trained as a probability."""

    name = "ranking"
    width = 1
    activations = ("identity", "sigmoid")
    trained_activation = "sigmoid"
    pairs = "required"
    ranks = starts_at_prior = has_negatives = True
    column = "score"
    pipeline = "text-ranking"

    def read(self, cells: Cells) -> Found:
        """Return a query, a document, and its relevance from 0 to 1."""
        relevance = numbers(cells.label, cells.where)
        if relevance is not None and (len(relevance) != 1 or not 0 <= relevance[0] <= 1):
            shown = f"`{short(cells.label)}`"
            raise DataError("is no relevance", where=cells.where, found=shown, expected="a number from 0 to 1")
        return cells.with_answer(None if relevance is None else relevance[0])

    def rows(self, cells: Cells) -> Sequence[Found]:
        """Return one row, or with columns of negatives the positive with relevance 1 and each negative with 0."""
        if not cells.negatives:
            return super().rows(cells)
        query, documents = text_cell(cells.text), cells.documents()
        if query is None or documents is None:
            return [None]
        return [(query, document, float(not place)) for place, document in enumerate(documents)]

    def encode(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:  # noqa: ARG002
        """Return relevances [rows]."""
        return np.array(answers, np.float32)

    def group(self, text: Any) -> str:
        """Return the query."""
        return str(text.first)

    def check_rows(self, texts: Sequence[Any], answers: Sequence[Any], part: str) -> None:
        """Raise DataError if no query has two texts, one of them relevant."""
        rows: dict[str, list[float]] = {}
        for text, relevance in zip(texts, np.asarray(answers), strict=True):
            rows.setdefault(self.group(text), []).append(float(relevance))
        if not any(len(relevances) > 1 and any(relevances) for relevances in rows.values()):
            raise DataError(
                f"nothing can be ranked in the {part} rows",
                found=number_of(len(rows), "query", "queries"),
                expected="a query with two texts or more, one of them relevant",
            )

    def answer(self, task: Task, result: np.ndarray, real: Mask, context: Mask | None) -> Score:  # noqa: ARG002
        """Return the score after the activation."""
        return Score(float(task.activated(result)[0]))

    def metrics(self, labels: Sequence[str]) -> tuple[Metric, ...]:  # noqa: ARG002
        """Return MRR and NDCG."""
        from adapter_export.graph.tasks.metrics import RANKINGS

        return RANKINGS

    def judge(self, task: Task, rows: Measured) -> Judged:
        """Judge scores [rows, 1] by relevances [rows] within groups."""
        from adapter_export.graph.tasks.metrics import judge_ranking

        scores = task.activated(np.stack(rows.results))[:, 0]
        return judge_ranking(scores, np.asarray(rows.right, np.float64), rows.groups)

    def cells(self, row: ShownRow) -> tuple[str, str, str]:
        """Return the score."""
        answer = row.text_answer.answer
        assert isinstance(answer, Score)
        return f"{answer.score:.4f}", "", ""


TYPE = Ranking()
