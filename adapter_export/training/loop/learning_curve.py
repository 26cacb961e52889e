"""Learning curve of a training run; needs the extra `plot`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapter_export.graph.tasks.metrics import Metric
from adapter_export.safe_io.output import Output
from adapter_export.training.loop.record import TrainingResult

_WINDOWS_PER_EPOCH = 10
"""Running means per epoch."""


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
