"""The base class of objectives: a loss, and the metric by which the best epoch is chosen."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.graph.tasks.task_type import Measured

if TYPE_CHECKING:
    from adapter_export.graph.tasks import Task
    from adapter_export.torch_backend.train.data import TextExamples
    from adapter_export.torch_backend.train.settings import LoopSpec

IGNORED = -100
"""The target of a token that is not to be learnt: padding, special tokens, and the later tokens of a word."""

_LOWEST = -1e4
"""Replaces −∞, of which no difference can be taken; its share of a softmax is 0 in float32."""


@dataclass(frozen=True)
class Scores:
    """The mean loss of a model on some rows (or tokens with labels), and its metrics.

    Attributes:
        loss: the mean loss.
        metrics: by name.
        decides: the metric that selects the best epoch, higher first if `more_is_better`; `None` is the loss.
        more_is_better: True if a higher value of it is better.
        majority: the metrics of answering the most frequent label to every row, with that `label`; empty without
            classes.
        collapse: a clause if nearly all rows get one answer.
    """

    loss: float
    metrics: Mapping[str, float]
    decides: str | None = None
    more_is_better: bool = True
    majority: Mapping[str, Any] = field(default_factory=dict)
    collapse: str | None = None

    def is_better_than(self, other: Scores) -> bool:
        """Return whether the metric that decides is better, or the same and the loss lower."""
        return self._rank() > other._rank()

    def _rank(self) -> tuple[float, float]:
        """Return a key to sort by; a metric that is not defined for the rows is worse than any number."""
        if self.decides is None:
            return 0.0, -self.loss
        found = self.metrics.get(self.decides, -math.inf if self.more_is_better else math.inf)
        return found if self.more_is_better else -found, -self.loss

    def document(self) -> dict[str, Any]:
        """The scores as JSON."""
        return {"loss": self.loss, **self.metrics}


Loss = tuple[Tensor, Tensor]
"""A sum over rows (or what else is learnt from), and how many they are, or what they weigh: their ratio is the mean."""


class Objective(ABC):
    """Training for one task type. Each module `…_loss.py` beside this one defines one.

    Attributes:
        loss_name: the name of the loss and its unit.
        decides: the metric by which the best epoch is chosen; `None` is the loss.
        compares: whether the loss compares the rows of a batch with each other, so that it is no sum over its parts.
    """

    loss_name: str
    decides: str | None = None
    compares: bool = False

    def of(self, settings: LoopSpec, task: Task | None) -> Objective:  # noqa: ARG002 — for losses with settings
        """Return the objective with the settings of a loop and of a task."""
        return self

    @abstractmethod
    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:
        """Return the loss of results [rows, …] and targets of the rows, as `matched` returns them.

        Args:
            results: of the head.
            targets: what they should be.
            weights: a weight for each class, if classes are weighted.
        """

    def soft_loss(self, found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """Return how far results are from a teacher's: the mean of T²·KL(softmax(teacher/T) ‖ softmax(student/T)).

        Source: Hinton et al. 2015, §2. The softmax is over axis 1: over classes or choices; of a span over the tokens.
        """
        found, wanted = (one.clamp(min=_LOWEST) / temperature for one in (found, wanted))
        own, goal = (torch.log_softmax(each, 1) for each in (found, wanted))
        terms = F.kl_div(own, goal, reduction="none", log_target=True)
        return temperature**2 * terms.sum(1).mean()

    def matched(self, examples: TextExamples, results: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the results of a head for some rows of texts, and what they should be: [rows, …] each."""
        return results, torch.from_numpy(np.asarray(examples.answers)[rows]).to(results.device)

    def measured(self, task: Task, results: np.ndarray, targets: np.ndarray, examples: Any) -> Measured:  # noqa: ARG002
        """Return matched results of all rows as the task type judges them."""
        return Measured(results, targets)

    def vectors(self, results: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002
        """Return vectors [rows, width] that shall differ, and the class of each; `None` if results are no vectors."""
        return None

    def lost(self, encoding: Any, answer: Any) -> bool:  # noqa: ARG002 — for answers that point into a text
        """Return whether the answer of a row lies in what was cut from its text."""
        return False


def class_loss(logits: Tensor, classes: Tensor, weights: Tensor | None) -> Loss:
    """Cross-entropy of logits [rows, classes]; 0 for no rows. A row weighs what its class weighs."""
    total = F.cross_entropy(logits, classes, weights, reduction="sum")
    return total, logits.new_tensor(len(classes)) if weights is None else weights[classes].sum()


def label_loss(logits: Tensor, truths: Tensor, weights: Tensor | None) -> Loss:
    """Binary cross-entropy of logits [rows, labels] or [rows]; labels that apply weigh more by `weights`."""
    total = F.binary_cross_entropy_with_logits(logits, truths, pos_weight=weights, reduction="sum")
    return total, logits.new_tensor(truths.numel())


def soft_label_loss(found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return T²·KL of sigmoids, of a teacher and a student, the mean over labels."""
    found, wanted = (one.clamp(min=_LOWEST) / temperature for one in (found, wanted))
    goal = torch.sigmoid(wanted)
    cross, own = (F.binary_cross_entropy_with_logits(each, goal) for each in (found, wanted))
    return temperature**2 * (cross - own)
