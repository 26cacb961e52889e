"""One label for each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_export.graph.tasks.answers import Prediction, ShownRow, prediction
from adapter_export.graph.tasks.cells import Cells, Found, label
from adapter_export.graph.tasks.labels import FEW, balanced_classes, class_indices, class_tables, label_names, ranked
from adapter_export.graph.tasks.task_type import Mask, Measured, TaskType
from adapter_export.tables import Table, probability_cells

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged, Metric
    from adapter_export.graph.tasks.task_record import Task


class SingleLabel(TaskType):
    """One label for each row: the class of the largest logit."""

    name = "single_label"
    has_labels = one_label = implied = reads_files = stratified = True
    method = "classify"
    pipeline = "text-classification"
    config_name = "single_label_classification"
    model_classes = ("ForSequenceClassification", "ForImageClassification")
    peft_type = "SEQ_CLS"
    adapterhub_heads = ("classification", "image_classification")

    def read(self, cells: Cells) -> Found:
        """Return the texts of a row and its label."""
        return cells.with_answer(label(cells.label, cells.where))

    def labels_of(self, answer: Any) -> Sequence[str]:
        """Return the label."""
        return (answer,)

    def label_names(self, answers: Sequence[Any], where: str, *, split: bool) -> tuple[str, ...]:
        """Return the labels; a split needs two rows of each."""
        return label_names(answers, where, rows=2 if split else 1)

    def encode(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:
        """Return classes [rows]."""
        return class_indices(answers, labels, where)

    def class_weights(self, answers: Any, count: int) -> np.ndarray:
        """Return weights inversely proportional to the rows of each class."""
        return balanced_classes(answers, count)

    def answer(self, task: Task, result: np.ndarray, real: Mask, context: Mask | None) -> Prediction:  # noqa: ARG002
        """Return the most probable class of logits [classes]."""
        return prediction(result, task.labels)

    def mean(self, task: Task, results: Sequence[np.ndarray]) -> np.ndarray:
        """Return the logarithms of the mean probabilities of windows."""
        shares = np.mean([task.activated(result) for result in results], axis=0)
        logs: np.ndarray = np.log(np.maximum(shares, np.finfo(np.float64).tiny))
        return logs

    def is_decided(self, task: Task, result: np.ndarray, absolute: float, context: Mask | None) -> bool:  # noqa: ARG002
        """Return true if the largest logit leads by more than twice the allowed deviation."""
        return ranked(result, absolute)

    def metrics(self, labels: Sequence[str]) -> tuple[Metric, ...]:  # noqa: ARG002
        """Return accuracy and macro-F1."""
        from adapter_export.graph.tasks.metrics import CLASSES

        return CLASSES

    def judge(self, task: Task, rows: Measured) -> Judged:
        """Judge logits [rows, classes] by classes [rows]."""
        from adapter_export.graph.tasks.metrics import judge_classes

        return judge_classes(task.activated(np.stack(rows.results)), np.asarray(rows.right), task.labels)

    def cells(self, row: ShownRow) -> tuple[str, str, str]:
        """Return the label and its probability."""
        answer = row.text_answer.answer
        assert isinstance(answer, Prediction)
        return answer.label, *probability_cells(answer.probability)

    def tables(self, rows: Sequence[ShownRow]) -> Iterator[Table | str]:
        """Yield all classes of a few rows, or one line for each of many."""
        return class_tables(rows) if len(rows) <= FEW else super().tables(rows)


TYPE = SingleLabel()
