"""Loss of any number of labels per row."""

from __future__ import annotations

from torch import Tensor

from adapter_export.training.objectives.objective import Loss, Objective, label_loss, soft_label_loss


class MultiLabelObjective(Objective):
    """Binary cross-entropy of each label."""

    loss_name = "binary cross-entropy (nats)"
    decides = "micro_f1"

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:
        """Return the binary cross-entropy of logits [rows, labels]."""
        return label_loss(results, targets, weights)

    def soft_loss(self, found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """Return the distance of the sigmoids."""
        return soft_label_loss(found, wanted, temperature)


OBJECTIVE = MultiLabelObjective()
