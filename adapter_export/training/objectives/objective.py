"""Base class of objectives: a loss, and the metric that selects the best epoch."""

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
    from adapter_export.training.loop.data import TextExamples
    from adapter_export.training.loop.settings import LoopSpec

IGNORED = -100
"""Target of tokens that are not learned: padding, special tokens, and the later tokens of a word."""

_LOWEST = -1e4
"""Replaces −∞, which has no differences; its share of a softmax is 0 in float32."""


@dataclass(frozen=True)
class Scores:
    """Mean loss of a model on some rows (or labelled tokens), and its metrics.

    Attributes:
        loss: mean loss.
        metrics: values by name.
        decides: metric that selects the best epoch, higher first if `more_is_better`; `None` is the loss.
        more_is_better: true if a higher value of it is better.
        majority: metrics of answering the most frequent `label` to every row; empty without classes.
        collapse: a clause if nearly all rows get the same answer.
    """

    loss: float
    metrics: Mapping[str, float]
    decides: str | None = None
    more_is_better: bool = True
    majority: Mapping[str, Any] = field(default_factory=dict)
    collapse: str | None = None

    def is_better_than(self, other: Scores) -> bool:
        """Return whether the selecting metric is better, or equal with a lower loss."""
        return self._rank() > other._rank()

    def _rank(self) -> tuple[float, float]:
        """Return a sort key; an undefined metric is worse than any number."""
        if self.decides is None:
            return 0.0, -self.loss
        found = self.metrics.get(self.decides, -math.inf if self.more_is_better else math.inf)
        return found if self.more_is_better else -found, -self.loss

    def document(self) -> dict[str, Any]:
        """Return the scores as JSON."""
        return {"loss": self.loss, **self.metrics}


Loss = tuple[Tensor, Tensor]
"""A sum over rows (or other units), and their number or total weight: the ratio is the mean."""


class Objective(ABC):
    """Training for one task type. Each module `…_loss.py` in this folder defines one.

    Attributes:
        loss_name: name of the loss and its unit.
        decides: metric that selects the best epoch; `None` is the loss.
        compares: whether the loss compares the rows of a batch, so that it is not a sum over its parts.
    """

    loss_name: str
    decides: str | None = None
    compares: bool = False

    def of(self, settings: LoopSpec, task: Task | None) -> Objective:  # noqa: ARG002 — for losses with settings
        """Return the objective with the settings of a loop and of a task."""
        return self

    @abstractmethod
    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:
        """Return the loss of results [rows, …] and targets of the rows, as returned by `matched`.

        Args:
            results: results of the head.
            targets: expected results.
            weights: a weight for each class, if classes are weighted.
        """

    def soft_loss(self, logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """Return the distance from a teacher's results: the mean of T²·KL(softmax(teacher/T) ‖ softmax(student/T)).

        Source: Hinton et al. 2015, §2. The softmax is over axis 1: over classes or choices; for a span over the tokens.
        """
        logits, wanted = (one.clamp(min=_LOWEST) / temperature for one in (logits, wanted))
        own, goal = (torch.log_softmax(each, 1) for each in (logits, wanted))
        terms = F.kl_div(own, goal, reduction="none", log_target=True)
        # T² keeps the size of the gradient, which falls with 1/T²
        return temperature**2 * terms.sum(1).mean()

    def matched(self, examples: TextExamples, results: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the results of a head for some rows of texts, and the targets: [rows, …] each."""
        return results, torch.from_numpy(np.asarray(examples.answers)[rows]).to(results.device)

    def measured(self, task: Task, results: np.ndarray, targets: np.ndarray, examples: Any) -> Measured:  # noqa: ARG002
        """Return matched results of all rows in the form that the task type scores."""
        return Measured(results, targets)

    def vectors(self, results: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002
        """Return vectors [rows, width] to be separated, and the class of each; `None` if results are not vectors."""
        return None

    def lost(self, encoding: Any, answer: Any) -> bool:  # noqa: ARG002 — for answers that point into a text
        """Return whether the answer of a row was truncated."""
        return False


def class_loss(logits: Tensor, classes: Tensor, weights: Tensor | None) -> Loss:
    """Return the cross-entropy of logits [rows, classes]; 0 for no rows. Rows have the weight of their class."""
    total = F.cross_entropy(logits, classes, weights, reduction="sum")
    return total, logits.new_tensor(len(classes)) if weights is None else weights[classes].sum()


def label_loss(logits: Tensor, truths: Tensor, weights: Tensor | None) -> Loss:
    """Return the binary cross-entropy of logits [rows, labels] or [rows]; `weights` apply to labels that are true."""
    total = F.binary_cross_entropy_with_logits(logits, truths, pos_weight=weights, reduction="sum")
    return total, logits.new_tensor(truths.numel())


def soft_label_loss(found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return T²·KL of sigmoids, of a teacher and a student, averaged over labels."""
    found, wanted = (one.clamp(min=_LOWEST) / temperature for one in (found, wanted))
    goal = torch.sigmoid(wanted)
    cross, own = (F.binary_cross_entropy_with_logits(each, goal) for each in (found, wanted))
    return temperature**2 * (cross - own)
