"""What a training run is told."""

from __future__ import annotations

from dataclasses import dataclass

from adapter_export.errors import UsageError


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
        temperature_decay: the part of its first temperature that a fusion loses in each step, down to 1; 1/1000 in
            AdapterHub.
        value_penalty: the factor of Σ(I − V)² in the loss, over the value projections of a fusion; 0.01 in AdapterHub.
        checkpoint_steps: steps between two checkpoints; one is written after each epoch, too.
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

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "checkpoint_steps"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("learning_rate", "clip"):
            _check(0 < getattr(self, name) < float("inf"), name, getattr(self, name), "a number above 0")
        _check(0 <= self.warmup < 1, "warmup", self.warmup, "a fraction, at least 0 and below 1")
        for name in ("temperature_decay", "value_penalty"):
            _check(0 <= getattr(self, name) < float("inf"), name, getattr(self, name), "at least 0")
        _check(0 <= self.weight_decay < float("inf"), "weight_decay", self.weight_decay, "at least 0")
        _check(self.seed >= 0, "seed", self.seed, "at least 0")


def _check(holds: bool, name: str, found: object, expected: str) -> None:
    if not holds:
        raise UsageError(f"`{name}` has a value that it cannot have", found=found, expected=expected)
