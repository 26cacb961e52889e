"""Loss of numbers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from adapter_export.training.objectives.objective import Loss, Objective


class RegressionObjective(Objective):
    """Mean squared error."""

    loss_name = "mean squared error"

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:  # noqa: ARG002
        """Return squared errors of numbers [rows, numbers]."""
        return F.mse_loss(results, targets, reduction="sum"), results.new_tensor(targets.numel())

    def soft_loss(self, found: Tensor, wanted: Tensor, temperature: float) -> Tensor:  # noqa: ARG002
        """Return the mean squared difference."""
        return F.mse_loss(found, wanted)


OBJECTIVE = RegressionObjective()
