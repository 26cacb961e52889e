"""What each problem type is trained for: its loss, and the metric by which the best epoch is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.graph.tasks import ProblemType

IGNORED = -100
"""The target of a token that is not to be learnt: padding, special tokens, and the later tokens of a word."""

_TEMPERATURE = 0.1
_CHUNK = 1024


@dataclass(frozen=True)
class Scores:
    """The mean loss of a model on some rows (or tokens with labels), and its metrics.

    `decides` is the metric, of those where more is better, by which the best epoch is chosen; the loss if none is.
    """

    loss: float
    metrics: Mapping[str, float]
    decides: str | None = None

    def is_better_than(self, other: Scores) -> bool:
        """Return whether the metric that decides is higher, or the same and the loss lower."""
        if self.decides is None:
            return self.loss < other.loss
        return (self.metrics[self.decides], -self.loss) > (other.metrics[self.decides], -other.loss)

    def document(self) -> dict[str, Any]:
        """The scores as JSON."""
        return {"loss": self.loss, **self.metrics}


@dataclass(frozen=True)
class Objective:
    """What a problem type is trained for.

    Attributes:
        loss: of results [rows, …] and targets of the rows, as `TextExamples.matched` returns them.
        loss_name: its name and its unit.
        decides: the metric by which the best epoch is chosen; the loss if none is.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    loss_name: str
    decides: str | None = None


def token_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """The mean cross-entropy of the tokens that have labels; 0 if none has."""
    return F.cross_entropy(logits, classes, reduction="sum") / max(len(classes), 1)


def contrastive_loss(vectors: Tensor, classes: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, equation 2), temperature 0.1.

    Each row shall be nearer to the rows of its class than to others: −mean over those of log softmax(cosine/0.1), the
    softmax over all other rows. A row whose class nobody shares has no say; 0 if that is all of them.
    """
    unit = F.normalize(vectors, dim=-1)
    total, count = vectors.sum() * 0, 0
    for start in range(0, len(unit), _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, len(unit)), device=unit.device)
        itself = torch.arange(len(unit), device=unit.device) == rows[:, None]
        alike = (classes[rows, None] == classes) & ~itself
        scores = (unit[rows] @ unit.T / _TEMPERATURE).masked_fill(itself, -torch.inf)
        shares = torch.log_softmax(scores, -1).masked_fill(~alike, 0)
        has_peers = alike.any(-1)
        total = total - (shares.sum(-1) / alike.sum(-1).clamp(min=1))[has_peers].sum()
        count += int(has_peers.sum())
    return total / max(count, 1)


def span_loss(logits: Tensor, places: Tensor) -> Tensor:
    """The mean cross-entropy of start and end over the tokens of the context (Devlin et al. 2019, §4.2).

    Args:
        logits: [rows, tokens, 2], −∞ at tokens that are not of the context.
        places: the first and the last token of each answer [rows, 2], `IGNORED` where it was cut away.
    """
    sums = (
        F.cross_entropy(logits[..., end], places[:, end], reduction="sum", ignore_index=IGNORED) for end in range(2)
    )
    return sum(sums, start=logits.new_zeros(())) / max(2 * int((places[:, 0] != IGNORED).sum()), 1)


OBJECTIVES: Mapping[ProblemType, Objective] = {
    "single_label": Objective(F.cross_entropy, "cross-entropy (nats)", "accuracy"),
    "multi_label": Objective(F.binary_cross_entropy_with_logits, "binary cross-entropy (nats)", "micro_f1"),
    "multiple_choice": Objective(F.cross_entropy, "cross-entropy over the choices (nats)", "accuracy"),
    "token": Objective(token_loss, "cross-entropy (nats)", "macro_f1"),
    "span": Objective(span_loss, "cross-entropy of start and end (nats)", "f1"),
    "regression": Objective(F.mse_loss, "mean squared error"),
    "embedding": Objective(contrastive_loss, "contrastive loss (nats)", "neighbour_accuracy"),
    "ranking": Objective(F.binary_cross_entropy_with_logits, "binary cross-entropy (nats)", "mrr"),
}
"""By problem type. Tokens are judged by macro-F1, because most words have the label that says nothing."""
