"""Progress, measurements and notes of long calls."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from adapter_export.words import visible


class Percent(int):
    """Units of work that mean nothing to a reader, who sees a percentage of them instead of their number."""


class Reporter:
    """Receives the steps, measurements and notes of a long call.

    This base class ignores steps and measurements and turns notes into Python warnings; override the methods to show
    them. A reporter can be reused for several calls in turn. Its methods run in the thread of the call.
    """

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:
        """Receive the step that starts.

        Args:
            label: description of the step, such as `writing the graph`.
            done: finished units of work.
            total: units of work of the whole call, or of this stage; `None` if the call cannot count them, `Percent` if
                their number means nothing to a reader.
        """

    def measure(self, values: Mapping[str, float], step: int) -> None:
        """Receive metrics of a step, counted from 1, such as `training/loss`; experiment trackers get the same."""

    def warn(self, text: str) -> None:
        """Receive a note for the caller that is not an error, such as `no bank: …`."""
        warnings.warn(str(visible(text)), stacklevel=3)


class Part(Reporter):
    """Reports one part of a longer call under one label, scaled to the units of the whole.

    Args:
        whole: receives the steps.
        label: the label of all steps.
        before: units of the whole finished before this part.
        size: units of the whole in this part.
        total: units of the whole; `None` if they cannot be counted.
    """

    def __init__(self, whole: Reporter, label: str, before: int, size: int, total: int | None) -> None:
        self._whole, self._label, self._before, self._size, self._total = whole, label, before, size, total

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:  # noqa: ARG002
        """Report the progress of this part."""
        self._whole.step(self._label, self._before + done * self._size // (total or 1), self._total)

    def warn(self, text: str) -> None:
        """Pass a note on."""
        self._whole.warn(text)


SILENT = Reporter()
"""Ignores progress; notes are Python warnings."""
