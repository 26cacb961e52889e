"""Progress, measurements and notes of long calls."""

from __future__ import annotations

import warnings
from collections.abc import Mapping


class Reporter:
    """Receive what a long call reports: its steps, its measurements and its notes.

    This base class ignores steps and measurements and turns notes into Python warnings. Subclass it and override what
    you want to show. One reporter may be given to several calls, one after the other; its methods are called from the
    thread that made the call.
    """

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:
        """Receive the step that begins.

        Args:
            label: what the call does next, such as `writing the graph`.
            done: units of work that are finished.
            total: units of work of the whole call, or of this stage; `None` if the call cannot count them.
        """

    def measure(self, values: Mapping[str, float], step: int) -> None:
        """Receive numbers measured after a step, counted from 1, such as `training/loss`: those that trackers get."""

    def note(self, text: str) -> None:
        """Receive a fact that the caller should know and that is not an error, such as `no bank: …`."""
        warnings.warn(text, stacklevel=3)


class Part(Reporter):
    """Reports a part of a longer call under one label, scaled to the units of the whole.

    Args:
        whole: receives the steps.
        label: the label of all of them.
        before: units of the whole that are finished before this part.
        size: units of the whole in this part.
        total: units of the whole; `None` if they cannot be counted.
    """

    def __init__(self, whole: Reporter, label: str, before: int, size: int, total: int | None) -> None:
        self._whole, self._label, self._before, self._size, self._total = whole, label, before, size, total

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:  # noqa: ARG002
        """Report how much of the part is finished."""
        self._whole.step(self._label, self._before + done * self._size // (total or 1), self._total)

    def note(self, text: str) -> None:
        """Pass a note on."""
        self._whole.note(text)


SILENT = Reporter()
"""Ignores progress; notes are Python warnings."""
