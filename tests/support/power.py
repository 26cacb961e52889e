"""Writers killed at any step, and disks that lose unsynced data."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

from adapter_export.safe_io import output


def killed_at(step: int, write: Callable[[], None]) -> tuple[bool, set[int]]:
    """Run a write in a child that is killed before the given step: a call that changes names or waits for the disk.

    Returns:
        Whether it came to its end, and the inodes of the files that it had waited for.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        steps = itertools.count()

        def counted(call: Callable[..., object], arguments: tuple[object, ...], names: dict[str, object]) -> object:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **names)

        def watch(module: object, name: str) -> None:
            call = getattr(module, name)
            setattr(module, name, lambda *arguments, **names: counted(call, arguments, names))

        def sync(file: int) -> None:
            fsync(file)
            os.write(writing, os.fstat(file).st_ino.to_bytes(8, "little"))

        fsync, os.fsync = os.fsync, sync
        for name in ("fsync", "mkdir", "rename", "replace", "unlink", "rmdir", "link", "open"):
            watch(os, name)
        watch(output, "exchange")
        code = 1
        try:
            write()
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        synced = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status), {
        int.from_bytes(synced[start : start + 8], "little") for start in range(0, len(synced), 8)
    }


def lose_power(folder: Path, synced: set[int], lost: Callable[[], bool] = lambda: True) -> None:
    """Empty all or some unsynced files, as after a power failure."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith(".lock") and path.stat().st_ino not in synced and lost():
            path.write_bytes(b"")
