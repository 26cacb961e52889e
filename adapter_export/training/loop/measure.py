"""Metrics of a model on labelled rows, by the engine of `adapter-export evaluate`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.errors import UsageError
from adapter_export.graph.tasks import HEAD_TYPES, TASK_TYPES, Learnt, Task
from adapter_export.graph.tasks.metrics import Judged, Metric, judge_tokens
from adapter_export.training.loop.data import Examples
from adapter_export.training.objectives import OBJECTIVES
from adapter_export.words import argument, quoted

LOSS = "loss"
"""Name of the loss as the selecting metric, and in records."""


def deciding(problem: Learnt, labels: Sequence[str], wanted: str | None) -> Metric | None:
    """Return the metric that selects the best epoch, by default that of the objective; `None` is the loss.

    Raises:
        UsageError: the task does not have this metric.
    """
    name = OBJECTIVES[problem].decides if wanted is None else wanted
    metrics = {metric.name: metric for metric in TASK_TYPES[problem].metrics(labels)}
    if name in (None, LOSS):
        return None
    if name not in metrics:
        expected = quoted((LOSS, *metrics))
        raise UsageError(
            f"the task `{problem}` lacks this metric",
            where=argument("metric"),
            found=f"`{name}`",
            expected=expected,
        )
    return metrics[name]


def measure(found: Judged) -> dict[str, float]:
    """Return the metrics of scored rows by name, without undefined ones."""
    values = found.measure(np.arange(found.units))
    named = zip(found.metrics, values, strict=True)
    return {metric.name: float(value) for metric, value in named if np.isfinite(value)}


def judged(task: Task | None, results: Tensor, targets: Tensor, examples: Examples) -> Judged:
    """Score rows by the metrics of a task.

    Args:
        task: task of the results; `None` for language modelling, which has no head.
        results: as returned by `TextExamples.matched`.
        targets: as returned by `TextExamples.matched`.
        examples: the rows, in the same order.

    Raises:
        DataError: the rows cannot be scored, such as a single row without neighbours.
    """
    found, wanted = results.double().numpy(), targets.numpy()
    if task is None:
        return judge_tokens(found[:, 0], found[:, 1])
    rows = OBJECTIVES[examples.problem].measured(task, found, wanted, examples)
    return HEAD_TYPES[examples.problem].judge(task, rows)


def cosine_apart(vectors: Tensor, classes: Tensor) -> float:
    """Return the mean cosine of two rows of different classes; NaN if all have one class."""
    unit = F.normalize(vectors.double(), dim=-1)
    counts = torch.bincount(classes)
    sums = unit.new_zeros(len(counts), unit.shape[1]).index_add(0, classes, unit)
    pairs = counts.sum().square() - counts.square().sum()
    return float((sums.sum(0).square().sum() - sums.square().sum()) / pairs)
