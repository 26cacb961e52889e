"""Results shared by all workers of a run: builds, packages, large bundles."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder created by the first worker that needs it, while others wait; read-only afterwards.

    Args:
        factory: pytest's factory.
        name: name of the folder.
        make: fills an empty folder; others never see a partial one.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # a worker has a folder of its own in that of the run
    folder = root / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
            with making(name):
                make(unfinished)
            unfinished.rename(folder)
    return folder


_made_s: defaultdict[str, float] = defaultdict(float)


def processor_seconds() -> float:
    """Return the seconds of this process and its children, without the shared results."""
    return sum(os.times()[:4]) - sum(_made_s.values())


def shared_seconds() -> dict[str, float]:
    """Return the processor seconds that this process has spent on shared results, by their names."""
    return dict(_made_s)


@contextmanager
def making(name: str) -> Iterator[None]:
    """Count the seconds of a block for a shared result: else the test that happens to come first would pay for others.

    Results made within the block count by themselves.
    """
    before = processor_seconds()
    try:
        yield
    finally:
        _made_s[name] += processor_seconds() - before
