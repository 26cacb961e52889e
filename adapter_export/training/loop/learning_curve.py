"""Learning curve of a training run; needs the extra `plot`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapter_export.graph.tasks.metrics import Metric
from adapter_export.palette import BLUE, GREY, ORANGE
from adapter_export.safe_io.output import Output
from adapter_export.tables import number_of
from adapter_export.training.loop.record import TrainingResult

_WINDOWS_PER_EPOCH = 10
"""Running means per epoch."""

_NAMED = 3
"""Metrics in the legend besides the first."""


_HEADROOM = 1.03


def draw_curve(result: TrainingResult, title: str, path: Path, *, loss_name: str) -> None:
    """Plot the training loss per step, and the validation loss and metrics per epoch, as PNG; replaces the file.

    The metric that selected the epoch is coloured; the others are grey. Legends are above the curves, with the value of
    the best epoch.
    """
    figure = Figure(figsize=(8, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores = figure.subplots(1, 2)
    _draw_losses(losses, result, loss_name)
    _draw_scores(scores, result)
    for axes in (losses, scores):
        axes.axvline(result.best_epoch, color=GREY, linestyle=":", linewidth=1)
        axes.set_xlabel(f"epoch (epoch {result.best_epoch} is kept)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0, fontsize="small")
    figure.suptitle(title)
    with Output(path, force=True).file() as temporary:
        figure.savefig(temporary, format="png")


def _draw_losses(axes: Axes, result: TrainingResult, name: str) -> None:
    epochs = [record.epoch for record in result.history]
    per_epoch = len(result.losses) / len(epochs)
    steps = np.arange(1, len(result.losses) + 1) / per_epoch
    window = max(1, round(per_epoch / _WINDOWS_PER_EPOCH))
    smooth = np.convolve(result.losses, np.ones(window) / window, "valid")
    axes.plot(steps, result.losses, color=BLUE, alpha=0.3, linewidth=0.8)
    label = "training" if window == 1 else f"training, mean of {number_of(window, 'step')}"
    axes.plot(steps[window - 1 :], smooth, color=BLUE, label=label)
    axes.plot(epochs, [record.validation.loss for record in result.history], "o-", color=ORANGE, label="validation")
    axes.set_ylabel(name)
    axes.set_xlim(0, epochs[-1] * _HEADROOM)


def _draw_scores(axes: Axes, result: TrainingResult) -> None:
    """Plot the metrics from the first epoch on: there are none before it."""
    history, best = result.history, result.best
    names, epochs = list(best.validation.metrics), [record.epoch for record in history]
    first = best.validation.decides if best.validation.decides in names else next(iter(names), None)
    others = [name for name in names if name != first]
    for at, name in enumerate(sorted(names, key=lambda name: name == first)):
        values = [record.validation.metrics.get(name, np.nan) for record in history]
        if name == first:
            label = f"{Metric(name).words}, {best.validation.metrics[name]:.3f} kept"
            axes.plot(epochs, values, "o-", color=ORANGE, label=label)
        else:
            words = ", ".join(Metric(other).words for other in others[:_NAMED])
            axes.plot(epochs, values, "-", color=GREY, linewidth=1, label=words if not at else None)
    axes.set_ylabel("validation")
    axes.set_xlim(epochs[0] - 0.4, epochs[-1] + 0.4)
