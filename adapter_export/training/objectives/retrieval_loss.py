"""Loss of vectors of anchors and documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.graph.tasks.task_type import Measured
from adapter_export.training.objectives.anchors import not_negative
from adapter_export.training.objectives.contrastive import Contrastive
from adapter_export.training.objectives.objective import Loss

if TYPE_CHECKING:
    from adapter_export.graph.tasks import Task
    from adapter_export.training.loop.data import TextExamples


class RetrievalObjective(Contrastive):
    """Cross-entropy of the positive among all documents of a batch (van den Oord et al. 2018, equation 4)."""

    loss_name = "contrastive loss of pairs (nats)"
    decides = "ndcg_at_10"

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:  # noqa: ARG002
        """Return −log softmax(cosine/temperature) of each anchor's own positive, over the documents of all rows.

        Other positives of the same anchor in this batch, and documents equal to the anchor, do not count: they are not
        negatives.

        Args:
            results: vectors [rows, texts, width] of anchors, positives and negatives.
            targets: a number for each distinct text, [rows, texts].
            weights: unused.
        """
        documents, total = results[:, 1:].transpose(0, 1).flatten(0, 1), results.sum() * 0
        for rows, cosines in self.parts(results[:, 0], documents):
            scores = cosines.masked_fill(not_negative(targets, rows), -torch.inf)
            total = total + F.cross_entropy(scores, rows, reduction="sum")
        return total, results.new_tensor(len(results))

    def matched(self, examples: TextExamples, results: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return vectors [rows, texts, width], and the numbers of the texts [rows, texts]."""
        return super().matched(examples, results.reshape(len(rows), -1, results.shape[-1]), rows)

    def measured(self, task: Task, results: np.ndarray, targets: np.ndarray, examples: Any) -> Measured:  # noqa: ARG002
        """Return the vectors, and the numbers of the texts of each row."""
        return Measured(results, targets.tolist())

    def vectors(self, results: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of the anchors, and their numbers."""
        return results[:, 0], targets[:, 0]


OBJECTIVE = RetrievalObjective(temperature=0.05)
