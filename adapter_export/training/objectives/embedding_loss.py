"""Loss of vectors of labelled texts."""

from __future__ import annotations

import torch
from torch import Tensor

from adapter_export.training.objectives.contrastive import Contrastive
from adapter_export.training.objectives.objective import Loss


class EmbeddingObjective(Contrastive):
    """Supervised contrastive loss (Khosla et al. 2020, equation 2)."""

    loss_name = "contrastive loss (nats)"
    decides = "neighbour_accuracy"

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:  # noqa: ARG002
        """Return the loss, which moves each row closer to the rows of its class than to others.

        It is −mean over those of log softmax(cosine/temperature), the softmax over all other rows. A row that is the
        only one of its class does not count.
        """
        total, count = results.sum() * 0, results.new_tensor(0)
        for rows, cosines in self.parts(results, results):
            itself = torch.arange(len(results), device=results.device) == rows[:, None]
            alike = (targets[rows, None] == targets) & ~itself
            shares = torch.log_softmax(cosines.masked_fill(itself, -torch.inf), -1).masked_fill(~alike, 0)
            has_peers = alike.any(-1)
            total = total - (shares.sum(-1) / alike.sum(-1).clamp(min=1))[has_peers].sum()
            count = count + has_peers.sum()
        return total, count / (1 + len(self.widths))

    def vectors(self, results: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors and their classes."""
        return results, targets


OBJECTIVE = EmbeddingObjective(temperature=0.1)
