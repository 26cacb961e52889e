"""The files of a bundle: listed when it is written, verified when it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adapter_export.errors import FileError, FormatError, HashError
from adapter_export.format.files import sha256_of
from adapter_export.format.manifest import FileRecord, Manifest

MANIFEST_FILE = "manifest.json"


def list_files(folder: Path, hashed: Mapping[str, str] | None = None) -> tuple[FileRecord, ...]:
    """Every file in a folder but its manifest, sorted by path.

    Args:
        folder: the folder.
        hashed: the sha256 of files that were hashed already, by path.

    Raises:
        FileError: a file cannot be read.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    paths.pop(MANIFEST_FILE, None)
    known = hashed or {}
    return tuple(
        FileRecord(name, known.get(name) or sha256_of(paths[name]), paths[name].stat().st_size)
        for name in sorted(paths)
    )


def verify_files(manifest: Manifest, folder: Path) -> None:
    """Hold every file that the manifest lists against its size and its hash.

    Raises:
        FileError: a file is missing, or a link leads out of the folder.
        FormatError: a file has another size.
        HashError: a file has other bytes.
    """
    for record in manifest.files:
        _verify(record, folder)


def _verify(record: FileRecord, folder: Path) -> None:
    path = folder / record.path
    if not path.is_file():
        raise FileError(
            "is missing in the bundle", where=path, expected=f"{record.bytes} bytes", fix="copy the whole bundle again"
        )
    if not path.resolve().is_relative_to(folder.resolve()):
        raise FileError(
            "is a link that leads out of the bundle",
            where=path,
            found=path.resolve(),
            expected=f"a file in {folder}",
            fix="put the file itself in its place",
        )
    size = path.stat().st_size
    if size != record.bytes:
        raise FormatError(
            "has another size than when it was written",
            where=path,
            found=f"{size} bytes",
            expected=f"{record.bytes} bytes",
            fix="take the file from its source again",
        )
    found = sha256_of(path)
    if found != record.sha256:
        raise HashError(path, found=found, expected=record.sha256)
