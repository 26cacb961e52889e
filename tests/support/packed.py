"""Fixture folders of many small files, kept as one archive per base in `tests/fixtures`.

Needs only the standard library and `filelock`: `make.py` scripts import it in the environments of other libraries.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from filelock import FileLock

FIXTURES = Path(__file__).parents[1] / "fixtures"

_FIRST_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest time of an entry in a zip archive: the same files are the same bytes."""


def unpacked(name: str) -> Path:
    """Return the folder with the contents of all archives in `tests/fixtures/NAME`. Tests must not write into it.

    It is unpacked by the first process that asks for it and kept until an archive changes.
    """
    archives = sorted((FIXTURES / name).glob("*.zip"))
    digest = hashlib.sha256()
    for archive in archives:
        digest.update(archive.read_bytes())
    parent = FIXTURES / name / ".unpacked"
    parent.mkdir(exist_ok=True)
    folder = parent / digest.hexdigest()[:16]
    with FileLock(FIXTURES / name / ".unpacked.lock"):
        if not folder.exists():
            _remove_contents(parent)
            unfinished = Path(tempfile.mkdtemp(dir=parent))
            for archive in archives:
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(unfinished)
            unfinished.rename(folder)
    return folder


@contextmanager
def repacked(name: str, archive_of: Callable[[Path], str]) -> Iterator[None]:
    """Work in a copy of the folder of `unpacked`, then write its archives anew.

    Args:
        name: the folder in `tests/fixtures`.
        archive_of: names the archive, without its suffix, of a relative path.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(shutil.copytree(unpacked(name), Path(made) / name))
        with chdir(folder):
            yield
        pack(folder, FIXTURES / name, archive_of)


def pack(folder: Path, into: Path, archive_of: Callable[[Path], str]) -> None:
    """Write the files of a folder into archives in `into`, in the order of their names and without compression.

    Git compresses them; compressed entries would differ between versions of zlib.
    """
    for archive in into.glob("*.zip"):
        archive.unlink()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = path.relative_to(folder)
        with zipfile.ZipFile(into / f"{archive_of(inside)}.zip", "a") as archive:
            archive.writestr(zipfile.ZipInfo(os.fspath(inside), _FIRST_DATE), path.read_bytes())


def _remove_contents(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)
