"""Loss of anchors and documents, which are compared with those of the other rows of a batch."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.graph.tasks.task_type import Measured
from adapter_export.training.objectives.contrastive import Contrastive
from adapter_export.training.objectives.objective import Loss

if TYPE_CHECKING:
    from adapter_export.graph.tasks import Task
    from adapter_export.training.loop.data import TextExamples


class AnchorObjective(Contrastive):
    """Cross-entropy of the positive among all documents of a batch (van den Oord et al. 2018, equation 4)."""

    decides = "ndcg_at_10"

    @abstractmethod
    def scores(self, anchors: Tensor, documents: Tensor) -> Tensor:
        """Return the score of each anchor with each document [anchors, documents], divided by the temperature."""

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:  # noqa: ARG002
        """Return −log softmax(score/temperature) of each anchor's own positive, over the documents of all rows.

        Other positives of the same anchor in this batch, and documents equal to the anchor, do not count: they are not
        negatives.

        Args:
            results: results [rows, texts, …] of anchors, positives and negatives.
            targets: a number for each distinct text, [rows, texts].
            weights: unused.
        """
        documents = results[:, 1:].transpose(0, 1).flatten(0, 1)
        scores = self.scores(results[:, 0], documents).masked_fill(not_negative(targets), -torch.inf)
        rows = torch.arange(len(results), device=results.device)
        return F.cross_entropy(scores, rows, reduction="sum"), results.new_tensor(len(results))

    def matched(self, examples: TextExamples, results: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return vectors [rows, texts, width], and the numbers of the texts [rows, texts]."""
        return super().matched(examples, results.reshape(len(rows), -1, results.shape[-1]), rows)

    def measured(self, task: Task, results: np.ndarray, targets: np.ndarray, examples: Any) -> Measured:  # noqa: ARG002
        """Return the vectors, and the numbers of the texts of each row."""
        return Measured(results, targets.tolist())

    def vectors(self, results: Tensor, targets: Tensor) -> None:
        """Return `None`: only dense vectors of texts can be close to equal."""


def not_negative(targets: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return which documents are no negatives of an anchor, although they are not its positive, [anchors, documents].

    Args:
        targets: a number for each distinct text, [rows, texts].
        rows: numbers of some anchors. Default: all.
    """
    rows = torch.arange(len(targets), device=targets.device) if rows is None else rows
    anchors, count, names = targets[:, 0], targets.max() + 1, targets[:, 1:].T.flatten()
    positives, own = anchors * count + targets[:, 1], anchors[rows, None]
    false = torch.isin(own * count + names, positives) | (own == names)
    false[torch.arange(len(rows)), rows] = False
    return false
