"""Progress and notes of long calls."""

from __future__ import annotations


class Reporter:
    """Receive the progress and the notes of a long call; this base class ignores both.

    Subclass it and override what you want to show. One reporter may be given to several calls, one after the other;
    its methods are called from the thread that made the call.
    """

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:
        """Receive the step that begins.

        Args:
            label: what the call does next, such as `writing the graph`.
            done: units of work that are finished.
            total: units of work of the whole call, or of this stage; `None` if the call cannot count them.
        """

    def note(self, text: str) -> None:
        """Receive a fact that the caller should know and that is not an error, such as `no bank: …`."""


SILENT = Reporter()
"""Ignores progress and notes."""
