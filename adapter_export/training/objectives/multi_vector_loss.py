"""Loss of the vectors of tokens of anchors and documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.graph.tasks.task_type import Measured
from adapter_export.training.objectives.anchors import AnchorObjective
from adapter_export.training.objectives.objective import Objective

if TYPE_CHECKING:
    from adapter_export.graph.tasks import Task
    from adapter_export.training.loop.data import TextExamples

_SCORES = 2**26
"""Maximum number of dot products of tokens in memory at a time."""


class MultiVectorObjective(AnchorObjective):
    """Cross-entropy of MaxSim among all documents of a batch (Khattab and Zaharia 2020, §3.4, with in-batch negatives).

    Tokens without a vector, such as padding, are vectors of zeros.
    """

    loss_name = "contrastive loss of tokens (nats)"

    def scores(self, anchors: Tensor, documents: Tensor) -> Tensor:
        """Return the MaxSim of each anchor with each document [anchors, documents], divided by the temperature."""
        counts, real = anchors.any(-1), documents.any(-1)
        size = max(1, _SCORES // max(1, anchors.shape[1] * real.numel()))
        parts = []
        for start in range(0, len(anchors), size):
            products = torch.einsum("iqd,jtd->ijqt", anchors[start : start + size], documents)
            largest = products.masked_fill(~real[None, :, None], -torch.inf).amax(-1)
            parts.append(largest.masked_fill(~counts[start : start + size, None], 0).sum(-1))
        return torch.cat(parts) / self.temperature

    def soft_loss(self, found: Tensor, wanted: Tensor, temperature: float) -> Tensor:  # noqa: ARG002
        """Return the mean of 1 − cosine over all tokens."""
        real = wanted.any(-1)
        return (1 - F.cosine_similarity(found, wanted, dim=-1))[real].mean()

    def matched(self, examples: TextExamples, results: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return vectors [rows, texts, longest, width], zeros at padding, and the numbers of the texts."""
        if results.ndim == 3:
            masks = torch.tensor([encoding.attention_mask for encoding in examples.encodings(rows)])
            own = results[:, : masks.shape[1]] * masks[..., None].to(results)
            padded = F.pad(own, (0, 0, 0, int(examples.lengths.max()) - own.shape[1]))
            results = padded.reshape(len(rows), -1, *padded.shape[1:])
        return Objective.matched(self, examples, results, rows)

    def measured(self, task: Task, results: np.ndarray, targets: np.ndarray, examples: Any) -> Measured:  # noqa: ARG002
        """Return the vectors of each text without padding, and the numbers of the texts of each row."""
        rows = [[vectors[vectors.any(-1)] for vectors in row] for row in results]
        return Measured(rows, targets.tolist())


OBJECTIVE = MultiVectorObjective(temperature=1.0)
