"""Settings of a training run, its progress, and what it leaves behind: a record in the adapter and a learning curve."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapter_export.errors import UsageError, argument
from adapter_export.graph.tasks.metrics import Metric
from adapter_export.safe_io.output import Output
from adapter_export.torch_backend.train.objectives.objective import Scores
from adapter_export.torch_backend.train.task_files import TextTask
from adapter_export.version import __version__

CURVE_FILE = "learning_curve.png"
_WINDOWS_PER_EPOCH = 10
"""How many running means an epoch has in the image, side by side."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the defaults do well on sentences (a few thousand rows, bottleneck 64).

    Attributes:
        epochs: passes over the training rows, at most.
        batch_size: rows in a step.
        learning_rate: the highest one.
        warmup: the fraction of the steps over which the learning rate rises.
        weight_decay: decoupled, on projections and not on biases and norms (Loshchilov & Hutter 2019, §2).
        clip: the largest norm of the gradient of all tensors together; longer ones are scaled down to it.
        patience: stop after this many epochs without a better one.
        seed: of the order of rows and the dropout.
        checkpoint_steps: steps between two checkpoints; one is written after each epoch, too.
        temperature_decay: the fraction of its first temperature that a fusion loses in each step, down to 1; 1/1000 in
            AdapterHub.
        value_penalty: the factor of Σ(I − V)² in the loss, over the value projections of a fusion; 0.01 in AdapterHub.
        gradient_accumulation: into how many parts the rows of a step are cut, one computed after the other: less
            memory, and the same step, dropout apart.
        precision: in which matrices are multiplied; `no` is float32.
        cache_mb: how many MB (2²⁰ bytes) hidden states below the first adapter may take between epochs; 0 keeps none.
        metric: decides which epoch is kept: the task's first one if not given, or `loss`.
        drop_layers: the most layers whose adapters are left out of a step, the lowest ones, as many as are drawn for it
            (AdapterDrop; Rücklé et al. 2021, §3.2).
        class_weights: how much a row counts in the loss, by its label, 1 if a label is not named.
    """

    epochs: int = 4
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    patience: int = 3
    seed: int = 0
    checkpoint_steps: int = 100
    temperature_decay: float = 0.0
    value_penalty: float = 0.0
    gradient_accumulation: int = 1
    precision: str = "no"
    cache_mb: int = 1024
    metric: str | None = None
    drop_layers: int = 0
    class_weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        infinite = float("inf")
        rules: Sequence[tuple[Sequence[str], Callable[[float], bool], str]] = (
            (
                ("epochs", "batch_size", "patience", "checkpoint_steps", "gradient_accumulation"),
                lambda x: x >= 1,
                "at least 1",
            ),
            (("learning_rate", "clip"), lambda x: 0 < x < infinite, "a number above 0"),
            (("warmup",), lambda x: 0 <= x < 1, "a fraction, at least 0 and below 1"),
            (
                ("temperature_decay", "value_penalty", "weight_decay", "cache_mb", "drop_layers"),
                lambda x: 0 <= x < infinite,
                "at least 0",
            ),
            (("seed",), lambda x: x >= 0, "at least 0"),
        )
        for names, holds, expected in rules:
            for name in names:
                found = getattr(self, name)
                if not holds(found):
                    what = f"{argument(name)} has a value that it cannot have"
                    raise UsageError(what, found=found, expected=expected)
        weights = self.class_weights or {}
        if not all(0 < weight < infinite for weight in weights.values()):
            what = f"{argument('class_weights')} has a value that it cannot have"
            raise UsageError(what, found=weights, expected="above 0")


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the training rows, counted from 1: mean loss of a row at the step that saw it, scores, seconds."""

    epoch: int
    training_loss: float
    validation: Scores
    seconds: float


@dataclass(frozen=True)
class StepRecord:
    """One step: the loss of its rows before it, how many rows they were, and the seconds that it took."""

    loss: float
    rows: int
    seconds: float


class Progress(Protocol):
    """Is told of a run as it goes."""

    def prepared(self, summary: str) -> None:
        """The data are read and the adapter is attached."""

    def started(self, steps: int, done: int) -> None:
        """The run has so many steps at most, of which some were done before it was interrupted."""

    def stepped(self, record: StepRecord) -> None:
        """A step is done."""

    def epoch_finished(self, record: EpochRecord) -> None:
        """An epoch is done."""


class Silent:
    """Progress that nobody sees."""

    def prepared(self, summary: str) -> None:
        """Say nothing."""

    def started(self, steps: int, done: int) -> None:
        """Say nothing."""

    def stepped(self, record: StepRecord) -> None:
        """Say nothing."""

    def epoch_finished(self, record: EpochRecord) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    Attributes:
        history: its epochs.
        best_epoch: the best of them, from 1.
        losses: the loss of each step.
        resumed_at: the step at which it resumed, if it did.
    """

    history: Sequence[EpochRecord]
    best_epoch: int
    losses: Sequence[float]
    resumed_at: int | None

    @property
    def steps(self) -> int:
        """How many steps it took."""
        return len(self.losses)

    @property
    def best(self) -> EpochRecord:
        """The best epoch, whose weights the model holds."""
        return self.history[self.best_epoch - 1]


def training_record(
    settings: TrainingSettings, options: dict[str, Any], task: TextTask, result: TrainingResult, test: Scores | None
) -> dict[str, Any]:
    """A finished run as JSON; `options` are what else decided the result, such as widths and first weights."""
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
    return record if test is None else {**record, "test": test.document()}


def draw_curve(result: TrainingResult, title: str, path: Path, *, loss_name: str) -> None:
    """Draw the loss of steps, and loss and metrics of validation over the epochs, as PNG; replaces what is there."""
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
