"""A bar on stderr, for those who have nothing better at hand."""

from __future__ import annotations

import sys
from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Is told how many of how many are done."""

_WIDTH = 40


def as_progress(progress: Progress | bool | None) -> Progress:
    """What to tell: the function itself, a bar for true, nothing for false or none."""
    if progress is True:
        return _draw
    return _say_nothing if progress is None or progress is False else progress


def _say_nothing(*_: int) -> None:
    return None


def _draw(done: int, total: int) -> None:
    filled = _WIDTH * done // max(1, total)
    end = "\n" if done == total else ""
    sys.stderr.write(f"\r[{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{total}{end}")
    sys.stderr.flush()
