"""Loss of one label per row."""

from __future__ import annotations

from torch import Tensor

from adapter_export.training.objectives.objective import Loss, Objective, class_loss


class SingleLabelObjective(Objective):
    """Cross-entropy over the classes."""

    loss_name = "cross-entropy (nats)"
    decides = "accuracy"

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:
        """Return the cross-entropy of logits [rows, classes]."""
        return class_loss(results, targets, weights)


OBJECTIVE = SingleLabelObjective()
