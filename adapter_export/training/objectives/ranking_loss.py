"""Loss of relevance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from adapter_export.graph.tasks.task_type import Measured
from adapter_export.training.objectives.objective import Loss, Objective, label_loss, soft_label_loss

if TYPE_CHECKING:
    from adapter_export.graph.tasks import Task
    from adapter_export.training.loop.data import TextExamples


class RankingObjective(Objective):
    """Binary cross-entropy of the relevance of each row."""

    loss_name = "binary cross-entropy (nats)"
    decides = "mrr"

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:
        """Return the binary cross-entropy of scores [rows]."""
        return label_loss(results, targets, weights)

    def soft_loss(self, found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """Return the distance of the sigmoids."""
        return soft_label_loss(found, wanted, temperature)

    def matched(self, examples: TextExamples, results: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return scores [rows] and relevances [rows]."""
        return super().matched(examples, results[:, 0], rows)

    def measured(self, task: Task, results: np.ndarray, targets: np.ndarray, examples: Any) -> Measured:  # noqa: ARG002
        """Return scores [rows, 1], relevances and queries."""
        return Measured(results[:, None], targets, [text.first for text in examples.texts])


OBJECTIVE = RankingObjective()
