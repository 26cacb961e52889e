"""The learning curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapter_export.format.files import new_file
from adapter_export.torch_backend.train.objectives import metric_name
from adapter_export.torch_backend.train.record import EpochRecord

CURVE_FILE = "learning_curve.png"


def draw_curve(
    history: Sequence[EpochRecord], best_epoch: int, title: str, path: Path, *, loss_name: str = "loss"
) -> None:
    """Draw the loss and the metrics over the epochs; replaces what is at `path`.

    Args:
        history: the epochs.
        best_epoch: is marked, counted from 1.
        title: stands above.
        path: a PNG file.
        loss_name: what the loss is, and its unit.

    Raises:
        WriteError: the operating system refused.
    """
    figure = Figure(figsize=(8, 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores = figure.subplots(1, 2)
    epochs = [record.epoch for record in history]
    losses.plot(epochs, [record.training_loss for record in history], "o-", label="training")
    losses.plot(epochs, [record.validation.loss for record in history], "o-", label="validation")
    losses.set_ylabel(loss_name)
    for metric in history[0].validation.metrics:
        scores.plot(epochs, [record.validation.metrics[metric] for record in history], "o-", label=metric_name(metric))
    scores.set_ylabel("validation")
    for axes in (losses, scores):
        axes.axvline(best_epoch, color="0.7", linestyle=":", label="best epoch")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    figure.suptitle(title)
    with new_file(path, force=True) as temporary:
        figure.savefig(temporary, format="png")
