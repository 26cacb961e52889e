"""What is made once for all workers of a run: builds, packages, large bundles."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first worker to need it makes; the others wait for it. Nobody writes into it after that.

    Args:
        factory: pytest's own.
        name: the folder's.
        make: fills an empty folder; half of it is never seen by others.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # a worker has a folder of its own in that of the run
    folder = root / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
            make(unfinished)
            unfinished.rename(folder)
    return folder
