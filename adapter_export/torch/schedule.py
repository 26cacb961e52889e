"""The learning rate over a run."""

from __future__ import annotations


def rate_factor(step: int, total: int, warmup: float) -> float:
    """The factor on the learning rate at a step: up to 1 over the warm-up, then down towards 0, both in a line.

    It is above 0 at every step, so that no step is wasted.

    Args:
        step: counted from 0.
        total: the number of steps of the run.
        warmup: the fraction of the run that warms up, at least 0 and below 1.
    """
    warm = round(total * warmup)
    return (step + 1) / warm if step < warm else (total - step) / (total - warm)
