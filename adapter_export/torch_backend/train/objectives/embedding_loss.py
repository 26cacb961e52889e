"""The loss of vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.torch_backend.train.objectives.objective import Loss, Objective

_TEMPERATURE = 0.1
_CHUNK = 1024


class EmbeddingObjective(Objective):
    """Supervised contrastive loss (Khosla et al. 2020, equation 2), temperature 0.1."""

    loss_name = "contrastive loss (nats)"
    decides = "neighbour_accuracy"
    compares = True

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:  # noqa: ARG002
        """Return the loss: each row shall be nearer to the rows of its class than to others.

        It is −mean over those of log softmax(cosine/0.1), the softmax over all other rows. A row that is the only one
        of its class does not count.
        """
        unit = F.normalize(results, dim=-1)
        total, count = results.sum() * 0, results.new_tensor(0)
        for start in range(0, len(unit), _CHUNK):
            rows = torch.arange(start, min(start + _CHUNK, len(unit)), device=unit.device)
            itself = torch.arange(len(unit), device=unit.device) == rows[:, None]
            alike = (targets[rows, None] == targets) & ~itself
            scores = (unit[rows] @ unit.T / _TEMPERATURE).masked_fill(itself, -torch.inf)
            shares = torch.log_softmax(scores, -1).masked_fill(~alike, 0)
            has_peers = alike.any(-1)
            total = total - (shares.sum(-1) / alike.sum(-1).clamp(min=1))[has_peers].sum()
            count = count + has_peers.sum()
        return total, count

    def soft_loss(self, found: Tensor, wanted: Tensor, temperature: float) -> Tensor:  # noqa: ARG002
        """Return the mean of 1 − cosine."""
        return (1 - F.cosine_similarity(found, wanted, dim=-1)).mean()


OBJECTIVE = EmbeddingObjective()
