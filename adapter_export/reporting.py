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


SILENT = Reporter()
"""Ignores progress; notes are Python warnings."""
