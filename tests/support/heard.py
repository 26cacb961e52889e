"""Reporters for tests: one that records, and one that interrupts a training run."""

from __future__ import annotations

from collections.abc import Mapping

from adapter_export.reporting import Reporter


class Heard(Reporter):
    """Remembers steps, measurements and notes; notes are no warnings here.

    Attributes:
        steps: the label of each step.
        counts: `(done, total)` of each step.
        measured: `(step, values)` of each measurement.
        notes: the notes.
    """

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.counts: list[tuple[int, int | None]] = []
        self.measured: list[tuple[int, dict[str, float]]] = []
        self.notes: list[str] = []

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:
        self.steps.append(label)
        self.counts.append((done, total))

    def measure(self, values: Mapping[str, float], step: int) -> None:
        self.measured.append((step, dict(values)))

    def warn(self, text: str) -> None:
        self.notes.append(text)


class Interrupt(Reporter):
    """Stops a training as Ctrl-C does, in one of its steps."""

    def __init__(self, step: int) -> None:
        self.left = step

    def measure(self, values: Mapping[str, float], step: int) -> None:
        self.left -= "training/loss" in values
        if not self.left:
            raise KeyboardInterrupt
