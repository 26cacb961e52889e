"""Folders that are changed as a whole: beside the old one, of the same files, and then in its place at one stroke."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Collection
from pathlib import Path

_HERE, _EXCHANGE = -100, 2
"""Of Linux's `renameat2`: paths are relative to the current folder; the two places exchange what they hold."""

_SWAP = 2
"""Of macOS's `renamex_np`: likewise."""


def exchange(one: Path, other: Path) -> bool:
    """Let two paths of one file system exchange what they hold, at one stroke: at no time one of them holds nothing.

    Returns:
        Whether that was done; false where the system or the file system cannot do it.
    """
    first, second = os.fsencode(one), os.fsencode(other)
    library = None if os.name == "nt" else ctypes.CDLL(None)
    linux, mac = getattr(library, "renameat2", None), getattr(library, "renamex_np", None)
    if linux is not None:
        return int(linux(_HERE, first, _HERE, second, _EXCHANGE)) == 0
    return mac is not None and int(mac(first, second, _SWAP)) == 0


def link_tree(folder: Path, target: Path, without: Collection[str]) -> None:
    """Give every file of a folder a second name in another one; a copy where that cannot be.

    Whoever writes into such a file changes both. It must be replaced instead.

    Args:
        folder: the folder.
        target: where the second names go.
        without: paths of files that are left out, from the folder, with `/` between parts.

    Raises:
        OSError: the operating system refused.
    """
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name not in without:
            _link(file.resolve(), target / name)


def _link(file: Path, name: Path) -> None:
    name.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, name)
    except OSError:  # a file system without hard links, or a file that is not the user's
        shutil.copy2(file, name)
