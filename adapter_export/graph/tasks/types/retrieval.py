"""Anchors with their documents, for training and scoring of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_export.errors import DataError
from adapter_export.graph.task_names import RETRIEVAL
from adapter_export.graph.tasks.cells import Cells, Found, text_cell
from adapter_export.graph.tasks.task_type import Measured, TaskType
from adapter_export.graph.tasks.types.embedding import VectorType

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged, Metric
    from adapter_export.graph.tasks.task_record import Task


class AnchorType(TaskType):
    """A task of anchors, each with its positive and any negatives, which an anchor must rank."""

    has_several = has_negatives = True
    has_answers = False
    pairs = "required"

    def read(self, cells: Cells) -> Found:
        """Return an anchor, its positive, and as the answer both and the negatives."""
        anchor, documents = text_cell(cells.text), cells.documents()
        return None if anchor is None or documents is None else (anchor, documents[0], (anchor, *documents))

    def tokenized(self, text: Any, pair: Any, answer: Any, prefixes: tuple[str, str]) -> Any:  # noqa: ARG002
        """Return the anchor, the positive and the negatives, with their prefixes."""
        anchor, *documents = answer
        return (prefixes[0] + anchor, *(prefixes[1] + document for document in documents))

    def encode(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:  # noqa: ARG002
        """Return a number for each different text, [rows, texts], so that equal texts are known."""
        numbers: dict[str, int] = {}
        return np.array([[numbers.setdefault(text, len(numbers)) for text in row] for row in answers], np.int64)

    def truths(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:  # noqa: ARG002
        """Return the texts of each row."""
        return answers

    def group(self, text: Any) -> str:
        """Return the anchor."""
        return str(text[0])

    def check_rows(self, texts: Sequence[Any], answers: Sequence[Any], part: str) -> None:  # noqa: ARG002
        """Raise DataError for a single document, which nothing can be ranked against."""
        documents = {document for _, *of_query in texts for document in of_query}
        if len(documents) < 2:
            raise DataError(
                f"nothing can be ranked in the {part} rows",
                found=f"{len(documents)} document",
                expected="at least two different documents",
            )

    def metrics(self, labels: Sequence[str]) -> tuple[Metric, ...]:  # noqa: ARG002
        """Return NDCG, MRR and recall."""
        from adapter_export.graph.tasks.metrics import RETRIEVALS

        return RETRIEVALS


class Retrieval(AnchorType, VectorType):
    """An anchor, its positive and any negatives: the anchor's vector is trained to be nearest to the positive's."""

    name = RETRIEVAL
    recorded = "embedding"

    def judge(self, task: Task, rows: Measured) -> Judged:  # noqa: ARG002
        """Judge vectors [rows, texts, width] by the texts of each row."""
        from adapter_export.graph.tasks.metrics import judge_retrieval

        return judge_retrieval([[*row] for row in np.asarray(rows.results, np.float64)], rows.right)


TYPE = Retrieval()
