"""Loss and metrics of each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
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
    """What a task is trained for: a loss with its name and unit, and metrics, one of which may decide as in `Scores`.

    Both take results [rows, …] and targets of the rows, which are the tokens with labels in a token classification.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    loss_name: str
    metrics: Callable[[Tensor, Tensor], dict[str, float]]
    decides: str | None = None

    def scores(self, results: Tensor, targets: Tensor) -> Scores:
        """Everything that is measured on some rows."""
        return Scores(float(self.loss(results, targets)), self.metrics(results, targets), self.decides)


def labelled(results: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Results and targets in rows: of [rows, tokens, classes] only the tokens that have labels, all of other shapes."""
    learnt = targets != IGNORED if results.ndim == 3 else slice(None)
    return results[learnt], targets[learnt]


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


def neighbour_accuracy(vectors: Tensor, classes: Tensor) -> float:
    """The fraction of rows whose nearest other row, by the cosine, has their class."""
    unit = F.normalize(vectors, dim=-1)
    hits = 0
    for start in range(0, len(unit), _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, len(unit)))
        scores = unit[rows] @ unit.T
        scores[torch.arange(len(rows)), rows] = -torch.inf
        hits += int((classes[scores.argmax(-1)] == classes[rows]).sum())
    return hits / len(unit)


def macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    """The mean over the classes that occur in either of `2·hits / (true + predicted)`."""
    scores = []
    for number in np.union1d(true, predicted):
        right, said = true == number, predicted == number
        scores.append(2 * int((right & said).sum()) / (int(right.sum()) + int(said.sum())))
    return float(np.mean(scores))


def _classification(logits: Tensor, classes: Tensor) -> dict[str, float]:
    predicted, true = logits.argmax(-1).numpy(), classes.numpy()
    return {"accuracy": float((predicted == true).mean()), "macro_f1": macro_f1(true, predicted)}


def _regression(found: Tensor, wanted: Tensor) -> dict[str, float]:
    columns = zip(found.double().numpy().T, wanted.double().numpy().T, strict=True)
    error = float((found - wanted).abs().mean())
    return {"mean_absolute_error": error, "pearson": float(np.mean([_pearson(*pair) for pair in columns]))}


def _pearson(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two columns; 0 where one of them does not vary."""
    one, other = one - one.mean(), other - other.mean()
    scale = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / scale) if scale else 0.0


def metric_name(metric: str) -> str:
    """A metric as a person reads it: `macro-F1`, `mean absolute error`."""
    return "macro-F1" if metric == "macro_f1" else metric.replace("_", " ")


OBJECTIVES: Mapping[ProblemType, Objective] = {
    "single_label": Objective(F.cross_entropy, "cross-entropy (nats)", _classification, "accuracy"),
    "token": Objective(token_loss, "cross-entropy (nats)", _classification, "macro_f1"),
    "regression": Objective(F.mse_loss, "mean squared error", _regression),
    "embedding": Objective(
        contrastive_loss,
        "contrastive loss (nats)",
        lambda vectors, classes: {"neighbour_accuracy": neighbour_accuracy(vectors, classes)},
        "neighbour_accuracy",
    ),
}
"""By task. Token classification is judged by macro-F1, because most words have the label that says nothing."""
