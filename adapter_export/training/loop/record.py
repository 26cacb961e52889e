"""Results of a training run, and their record in the adapter."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from adapter_export.training.loop.settings import LoopSpec
from adapter_export.training.loop.task_files import TextTask
from adapter_export.training.objectives.objective import Scores
from adapter_export.version import __version__

CURVE_FILE = "learning_curve.png"
"""Name of the learning curve in the output folder."""


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the training rows, counted from 1; the loss of a row is that of its own step."""

    epoch: int
    training_loss: float
    validation: Scores
    seconds: float


@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    Attributes:
        history: its epochs.
        best_epoch: the best epoch, from 1.
        losses: loss of each step.
        resumed_at: step at which it resumed, if it did.
    """

    history: Sequence[EpochRecord]
    best_epoch: int
    losses: Sequence[float]
    resumed_at: int | None

    @property
    def steps(self) -> int:
        """Number of its steps."""
        return len(self.losses)

    @property
    def best(self) -> EpochRecord:
        """Best epoch, whose weights the model has."""
        return self.history[self.best_epoch - 1]


def training_record(
    settings: LoopSpec, options: dict[str, Any], task: TextTask, result: TrainingResult, test: Scores | None
) -> dict[str, Any]:
    """Return a finished run as JSON; `options` are further settings of the result, such as widths and first weights."""
    record: dict[str, Any] = {
        "producer": f"adapter-export {__version__}",
        "task": task.problem,
        "settings": {**asdict(settings), **options},
        "data": {
            **task.sources,
            "training_rows": len(task.training.texts),
            "validation_rows": len(task.validation.texts),
        },
        "history": [{**asdict(record), "validation": record.validation.document()} for record in result.history],
        "best_epoch": result.best_epoch,
        "validation": result.best.validation.document(),
        "steps": result.steps,
        "seconds": round(sum(record.seconds for record in result.history), 3),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "threads": torch.get_num_threads(),
    }
    parts = {"validation": result.best.validation, **({} if test is None else {"test": test})}
    majority = {name: dict(scores.majority) for name, scores in parts.items() if scores.majority}
    record |= {"majority": majority} if majority else {}
    return record if test is None else {**record, "test": test.document()}
