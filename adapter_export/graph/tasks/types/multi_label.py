"""Any number of labels for each row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_export.graph.tasks.answers import LabelSet, ShownRow, sigmoid
from adapter_export.graph.tasks.cells import Cells, Found, label_set
from adapter_export.graph.tasks.labels import FEW, class_indices, class_tables, label_names
from adapter_export.graph.tasks.task_type import Mask, Measured, TaskType
from adapter_export.tables import Table, probability_cells

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged, Metric
    from adapter_export.graph.tasks.task_record import Task


class MultiLabel(TaskType):
    """Any number of labels for each row: those whose probability reaches their threshold."""

    name = "multi_label"
    activations = ("sigmoid",)
    has_labels = has_thresholds = reads_files = starts_at_prior = True
    pipeline = "text-classification"
    config_name = "multi_label_classification"
    adapterhub_heads = ("multilabel_classification",)

    def read(self, cells: Cells) -> Found:
        """Return the texts of a row and its set of labels."""
        return cells.with_answer(label_set(cells.label, cells.where))

    def labels_of(self, answer: Any) -> Iterable[str]:
        """Return the labels of the set."""
        return sorted(answer)

    def label_names(self, answers: Sequence[Any], where: str, *, split: bool) -> tuple[str, ...]:  # noqa: ARG002
        """Return the labels that apply to some row."""
        return label_names([label for row in answers for label in sorted(row)], where, rows=1, least=1)

    def encode(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:
        """Return the labels that apply, 1.0 or 0.0 [rows, labels]."""
        targets = np.zeros((len(answers), len(labels)), np.float32)
        for row, names in zip(targets, answers, strict=True):
            row[class_indices(sorted(names), labels, where)] = 1
        return targets

    def class_weights(self, answers: Any, count: int) -> np.ndarray:  # noqa: ARG002
        """Return for each label the rows without it over the rows with it."""
        applies = np.asarray(answers).sum(0)
        weights: np.ndarray = (len(answers) - applies) / np.maximum(applies, 1)
        return weights

    def answer(self, task: Task, result: np.ndarray, real: Mask, context: Mask | None) -> LabelSet:  # noqa: ARG002
        """Return the labels whose probability reaches their threshold."""
        shares = task.activated(result)
        chosen = [label for at, label in enumerate(task.labels) if shares[at] >= task.threshold(at)]
        return LabelSet(tuple(chosen), dict(zip(task.labels, map(float, shares), strict=True)))

    def is_decided(self, task: Task, result: np.ndarray, absolute: float, context: Mask | None) -> bool:  # noqa: ARG002
        """Return true if no probability is near its threshold."""
        limits = [task.threshold(label) for label in range(len(result))]
        return bool((np.abs(sigmoid(result) - limits) > absolute).all())

    def metrics(self, labels: Sequence[str]) -> tuple[Metric, ...]:  # noqa: ARG002
        """Return F1 scores, subset accuracy and average precision."""
        from adapter_export.graph.tasks.metrics import LABEL_SETS

        return LABEL_SETS

    def judge(self, task: Task, rows: Measured) -> Judged:
        """Judge logits [rows, labels] by the labels that apply [rows, labels]."""
        from adapter_export.graph.tasks.metrics import judge_label_sets

        thresholds = [task.threshold(label) for label in range(len(task.labels))]
        probabilities, right = task.activated(np.stack(rows.results)), np.asarray(rows.right) > 0
        return judge_label_sets(probabilities, right, task.labels, thresholds)

    def cells(self, row: ShownRow) -> tuple[str, str, str]:
        """Return the labels and the least of their probabilities."""
        answer = row.text_answer.answer
        assert isinstance(answer, LabelSet)
        shares = [answer.probabilities[label] for label in answer.labels]
        return ", ".join(answer.labels) or "none", *(probability_cells(min(shares)) if shares else ("", ""))

    def tables(self, rows: Sequence[ShownRow]) -> Iterator[Table | str]:
        """Yield all labels of a few rows, those that apply marked, or one line for each of many."""
        return class_tables(rows) if len(rows) <= FEW else super().tables(rows)


TYPE = MultiLabel()
