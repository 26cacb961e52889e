"""What a training run tells while it runs, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from adapter_export.torch.objectives import Scores


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the training rows.

    Attributes:
        epoch: counted from 1.
        training_loss: the mean loss of a row, each at the step that saw it.
        validation: the scores after the pass.
        seconds: how long pass and validation took.
    """

    epoch: int
    training_loss: float
    validation: Scores
    seconds: float


class Progress(Protocol):
    """Hears of a run as it goes."""

    def started(self, steps: int, done: int) -> None:
        """The run has so many steps at most, of which some were done before it was interrupted."""

    def stepped(self, loss: float) -> None:
        """A step is done; `loss` is that of its batch."""

    def epoch_finished(self, record: EpochRecord) -> None:
        """An epoch is done."""


class Silent:
    """Tells nobody."""

    def started(self, steps: int, done: int) -> None:
        """Say nothing."""

    def stepped(self, loss: float) -> None:
        """Say nothing."""

    def epoch_finished(self, record: EpochRecord) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished run; the model holds the weights of the best epoch.

    Attributes:
        history: the epochs.
        best_epoch: counted from 1.
        steps: how many were taken.
        resumed_at: the step at which it went on after an interruption, if it did.
    """

    history: Sequence[EpochRecord]
    best_epoch: int
    steps: int
    resumed_at: int | None

    @property
    def best(self) -> EpochRecord:
        """The best epoch."""
        return self.history[self.best_epoch - 1]
