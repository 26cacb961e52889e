"""Temporary files of this package. The next process removes those of a killed one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapter_export.safe_io.output import recover_noted
from adapter_export.safe_io.private_folder import PrivateFolder, abandoned_folders
from adapter_export.safe_io.shared_copies import remove_unused


def remove_abandoned() -> None:
    """Remove the temporary files of killed processes of this user, and shared copies that are no longer used."""
    for folder in abandoned_folders():
        recover_noted(folder)
    remove_unused()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a temporary folder that only this user can read.

    Raises:
        OSError: it cannot be created.
    """
    remove_abandoned()
    folder = PrivateFolder()
    try:
        yield folder.path
    finally:
        folder.remove()
