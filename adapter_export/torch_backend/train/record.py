"""Results of a training run: a record in the adapter, and a learning curve."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapter_export.graph.tasks.metrics import Metric
from adapter_export.safe_io.output import Output
from adapter_export.torch_backend.train.objectives.objective import Scores
from adapter_export.torch_backend.train.settings import LoopSpec
from adapter_export.torch_backend.train.task_files import TextTask
from adapter_export.version import __version__

CURVE_FILE = "learning_curve.png"
_WINDOWS_PER_EPOCH = 10
"""Running means per epoch in the learning curve."""


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


def draw_curve(result: TrainingResult, title: str, path: Path, *, loss_name: str) -> None:
    """Plot the training loss per step, and the validation loss and metrics per epoch, as PNG; replaces the file."""
    figure = Figure(figsize=(8, 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores = figure.subplots(1, 2, sharex=True)
    history = result.history
    epochs = [record.epoch for record in history]
    per_epoch = len(result.losses) / len(history)
    steps = np.arange(1, len(result.losses) + 1) / per_epoch
    window = max(1, round(per_epoch / _WINDOWS_PER_EPOCH))
    smooth = np.convolve(result.losses, np.ones(window) / window, "valid")
    losses.plot(steps, result.losses, color="C0", alpha=0.3, linewidth=0.8)
    losses.plot(steps[window - 1 :], smooth, color="C0", label=f"training, mean of {window} steps")
    losses.plot(epochs, [record.validation.loss for record in history], "o-", color="C1", label="validation")
    losses.set_ylabel(loss_name)
    for metric in history[0].validation.metrics:
        values = [record.validation.metrics.get(metric, np.nan) for record in history]
        scores.plot(epochs, values, "o-", label=Metric(metric).words)
    scores.set_ylabel("validation")
    for axes in (losses, scores):
        axes.axvline(result.best_epoch, color="0.7", linestyle=":", label="best epoch")
        axes.set_xlabel("epoch")
        axes.set_xlim(0, epochs[-1] * 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    figure.suptitle(title)
    with Output(path, force=True).file() as temporary:
        figure.savefig(temporary, format="png")
