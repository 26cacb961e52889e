"""Loss of one of several choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from adapter_export.graph.tasks.task_type import Measured
from adapter_export.training.objectives.objective import Loss, Objective, class_loss

if TYPE_CHECKING:
    from adapter_export.graph.tasks import Task
    from adapter_export.training.loop.data import TextExamples


class MultipleChoiceObjective(Objective):
    """Cross-entropy over the choices of a question."""

    loss_name = "cross-entropy over the choices (nats)"
    decides = "accuracy"

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:
        """Return the cross-entropy of scores [rows, choices]."""
        return class_loss(results, targets, weights)

    def matched(self, examples: TextExamples, results: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return a score for each choice, −∞ where another question has more choices, and the correct ones."""
        counts = [len(examples.texts[row]) for row in rows]
        scores = pad_sequence(list(torch.split(results[:, 0], counts)), True, -torch.inf)
        more = max(map(len, examples.texts)) - scores.shape[1]
        return super().matched(examples, pad(scores, (0, more), value=-torch.inf), rows)

    def measured(self, task: Task, results: np.ndarray, targets: np.ndarray, examples: Any) -> Measured:  # noqa: ARG002
        """Return the scores of the choices that each question has."""
        counts = [len(pairs) for pairs in examples.texts]
        return Measured([scores[:count] for scores, count in zip(results, counts, strict=True)], targets)


OBJECTIVE = MultipleChoiceObjective()
