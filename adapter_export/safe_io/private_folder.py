"""Temporary folders that only this user can read, and that outlive no process."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from adapter_export.safe_io.shared_copies import temporary_root, unlink_copies

try:
    import fcntl
except ImportError:  # Windows, where folders of a killed process are not removed
    fcntl = None  # type: ignore[assignment]

_PREFIX = "adapter-export-private-"
"""Prefix of the names of private folders."""


class PrivateFolder:
    """Temporary folder of this process, removed with the object or at exit.

    A lock (`flock`) marks it as used for other processes and for systemd's cleanup of temporary files.
    `abandoned_folders` finds those of killed ones.

    Raises:
        OSError: the folder cannot be created.
    """

    def __init__(self) -> None:
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=temporary_root()))
            try:
                lock = None if fcntl is None else os.open(self.path, os.O_RDONLY)
            except FileNotFoundError:  # removed by another process before it was locked
                continue
            self._end = weakref.finalize(self, _remove, self.path, lock, os.getpid())
            with suppress(OSError):  # on a file system without locks, nothing is removed
                if lock is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists():  # another process may have removed it before it was locked
                return
            self._end()

    def remove(self) -> None:
        """Remove the folder now."""
        self._end()


def abandoned_folders() -> Iterator[Path]:
    """Yield the private folders that killed processes of this user left; each is removed afterwards."""
    with suppress(OSError):
        for folder in [] if fcntl is None else sorted(temporary_root().glob(f"{_PREFIX}*")):
            with suppress(OSError), ExitStack() as stack:
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error if it is in use
                if os.fstat(lock).st_uid == os.geteuid():
                    yield folder
                    _remove_contents(folder)


def _remove(folder: Path, lock: int | None, process: int) -> None:
    if os.getpid() == process:  # not in a fork
        _remove_contents(folder)
    if lock is not None:
        with suppress(OSError):
            os.close(lock)


def _remove_contents(folder: Path) -> None:
    with suppress(OSError):
        unlink_copies(folder)
    shutil.rmtree(folder, ignore_errors=True)
