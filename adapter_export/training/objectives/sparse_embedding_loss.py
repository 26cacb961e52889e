"""Loss of sparse vectors of anchors and documents."""

from __future__ import annotations

from torch import Tensor

from adapter_export.training.objectives.anchors import AnchorObjective
from adapter_export.training.objectives.objective import Loss

_QUERY_WEIGHT, _DOCUMENT_WEIGHT = 5e-5, 3e-5
"""Weights of the regulariser, those of sentence-transformers' examples."""


class SparseEmbeddingObjective(AnchorObjective):
    """Cross-entropy of dot products among all documents of a batch, plus the FLOPS regulariser.

    Sources: Formal et al. 2021, "SPLADE v2", §3; Paria et al. 2020, equation 4.
    """

    loss_name = "contrastive loss of sparse vectors (nats)"

    def scores(self, anchors: Tensor, documents: Tensor) -> Tensor:
        """Return the dot product of each anchor with each document, divided by the temperature."""
        return anchors @ documents.T / self.temperature

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:
        """Return the cross-entropy and, for each row, the expected products of a comparison, weighted."""
        total, count = super().loss(results, targets, weights)
        queries, documents = (part.mean(0).square().sum() for part in (results[:, 0], results[:, 1:].flatten(0, 1)))
        return total + count * (_QUERY_WEIGHT * queries + _DOCUMENT_WEIGHT * documents), count


OBJECTIVE = SparseEmbeddingObjective(temperature=1.0)
