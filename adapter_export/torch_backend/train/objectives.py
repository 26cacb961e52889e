"""What each problem type is trained for: its loss, and the metric by which the best epoch is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.graph.tasks import Learnt

IGNORED = -100
"""The target of a token that is not to be learnt: padding, special tokens, and the later tokens of a word."""

_TEMPERATURE = 0.1
_CHUNK = 1024


@dataclass(frozen=True)
class Scores:
    """The mean loss of a model on some rows (or tokens with labels), and its metrics.

    `decides` is the metric by which the best epoch is chosen, of which more is better or not; the loss if none is.
    """

    loss: float
    metrics: Mapping[str, float]
    decides: str | None = None
    more_is_better: bool = True

    def is_better_than(self, other: Scores) -> bool:
        """Return whether the metric that decides is better, or the same and the loss lower."""
        return self._rank() > other._rank()

    def _rank(self) -> tuple[float, float]:
        """How good it is; a metric that is not defined for the rows is worse than any number."""
        if self.decides is None:
            return 0.0, -self.loss
        found = self.metrics.get(self.decides, -math.inf if self.more_is_better else math.inf)
        return found if self.more_is_better else -found, -self.loss

    def document(self) -> dict[str, Any]:
        """The scores as JSON."""
        return {"loss": self.loss, **self.metrics}


Loss = tuple[Tensor, Tensor]
"""A sum over rows (or what else is learnt from), and how many they are, or what they weigh: their ratio is the mean."""


@dataclass(frozen=True)
class Objective:
    """What a problem type is trained for.

    Attributes:
        loss: of results [rows, …] and targets of the rows, as `matched` of the rows returns them, and a weight for each
            class, if classes are weighted.
        loss_name: its name and its unit.
        decides: the metric by which the best epoch is chosen; the loss if none is.
        compares: whether the loss compares the rows of a batch with each other, so that it is no sum over its parts.
    """

    loss: Callable[[Tensor, Tensor, Tensor | None], Loss]
    loss_name: str
    decides: str | None = None
    compares: bool = False


def class_loss(logits: Tensor, classes: Tensor, weights: Tensor | None) -> Loss:
    """Cross-entropy of logits [rows, classes]; 0 for no rows. A row weighs what its class weighs."""
    total = F.cross_entropy(logits, classes, weights, reduction="sum")
    return total, logits.new_tensor(len(classes)) if weights is None else weights[classes].sum()


def label_loss(logits: Tensor, truths: Tensor, weights: Tensor | None) -> Loss:
    """Binary cross-entropy of logits [rows, labels] or [rows]; labels that apply weigh more by `weights`."""
    total = F.binary_cross_entropy_with_logits(logits, truths, pos_weight=weights, reduction="sum")
    return total, logits.new_tensor(truths.numel())


def squared_error(results: Tensor, numbers: Tensor, _: Tensor | None) -> Loss:
    """Squared errors of numbers [rows, numbers]."""
    return F.mse_loss(results, numbers, reduction="sum"), results.new_tensor(numbers.numel())


def contrastive_loss(vectors: Tensor, classes: Tensor, _: Tensor | None = None) -> Loss:
    """Supervised contrastive loss (Khosla et al. 2020, equation 2), temperature 0.1.

    Each row shall be nearer to the rows of its class than to others: −mean over those of log softmax(cosine/0.1), the
    softmax over all other rows. A row whose class nobody shares has no say.
    """
    unit = F.normalize(vectors, dim=-1)
    total, count = vectors.sum() * 0, vectors.new_tensor(0)
    for start in range(0, len(unit), _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, len(unit)), device=unit.device)
        itself = torch.arange(len(unit), device=unit.device) == rows[:, None]
        alike = (classes[rows, None] == classes) & ~itself
        scores = (unit[rows] @ unit.T / _TEMPERATURE).masked_fill(itself, -torch.inf)
        shares = torch.log_softmax(scores, -1).masked_fill(~alike, 0)
        has_peers = alike.any(-1)
        total = total - (shares.sum(-1) / alike.sum(-1).clamp(min=1))[has_peers].sum()
        count = count + has_peers.sum()
    return total, count


def span_loss(logits: Tensor, places: Tensor, _: Tensor | None = None) -> Loss:
    """Cross-entropy of start and end over the tokens of the context (Devlin et al. 2019, §4.2).

    Args:
        logits: [rows, tokens, 2], −∞ at tokens that are not of the context.
        places: the first and the last token of each answer [rows, 2], `IGNORED` where it was cut away.
    """
    sums = (
        F.cross_entropy(logits[..., end], places[:, end], reduction="sum", ignore_index=IGNORED) for end in range(2)
    )
    return sum(sums, start=logits.new_zeros(())), (2 * (places[:, 0] != IGNORED).sum()).to(logits)


def next_token_loss(results: Tensor, _ids: Tensor, _weights: Tensor | None) -> Loss:
    """The cross-entropy of each token that is learnt, which `matched` has computed: [tokens, 2], the first of both."""
    return results[:, 0].sum(), results.new_tensor(len(results))


OBJECTIVES: Mapping[Learnt, Objective] = {
    "single_label": Objective(class_loss, "cross-entropy (nats)", "accuracy"),
    "multi_label": Objective(label_loss, "binary cross-entropy (nats)", "micro_f1"),
    "multiple_choice": Objective(class_loss, "cross-entropy over the choices (nats)", "accuracy"),
    "token": Objective(class_loss, "cross-entropy (nats)", "macro_f1"),
    "span": Objective(span_loss, "cross-entropy of start and end (nats)", "f1"),
    "regression": Objective(squared_error, "mean squared error"),
    "embedding": Objective(contrastive_loss, "contrastive loss (nats)", "neighbour_accuracy", compares=True),
    "ranking": Objective(label_loss, "binary cross-entropy (nats)", "mrr"),
    "causal_lm": Objective(next_token_loss, "cross-entropy of a token (nats)"),
}
"""By problem type. Tokens are judged by macro-F1, because most words have the label that says nothing."""
