"""The files of a bundle: listed when it is written, verified when it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adapter_export.errors import FileError, FormatError, HashError
from adapter_export.format.files import sha256_of
from adapter_export.format.manifest import FileRecord, Manifest

MANIFEST_FILE = "manifest.json"

_SHOWN = 5
"""How many files a message names."""


def list_files(folder: Path, hashed: Mapping[str, str] | None = None) -> tuple[FileRecord, ...]:
    """Every file in a folder but its manifest and what is hidden, sorted by path.

    Args:
        folder: the folder.
        hashed: the sha256 of files that were hashed already, by path.

    Raises:
        FileError: a file cannot be read.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    paths = {name: path for name, path in paths.items() if not _is_hidden(name)}
    paths.pop(MANIFEST_FILE, None)
    known = hashed or {}
    return tuple(
        FileRecord(name, known.get(name) or sha256_of(paths[name]), paths[name].stat().st_size)
        for name in sorted(paths)
    )


def verify_files(manifest: Manifest, folder: Path) -> None:
    """Check the size and the hash of every file that the manifest lists, and that there are no others.

    The manifest itself has no hash in it; like the others it must be no link that leads out.

    Files and folders with a name that begins with a dot are passed over: systems put them there by themselves.

    Raises:
        FileError: a file is missing, or a link leads out of the folder.
        FormatError: a file has another size, or is not listed.
        HashError: a file has other bytes.
    """
    _check_inside(folder / MANIFEST_FILE, folder)
    _check_nothing_else(manifest, folder)
    for record in manifest.files:
        _verify(record, folder)


def _check_nothing_else(manifest: Manifest, folder: Path) -> None:
    """What nobody vouches for could be taken for a part of the bundle. A link is a file, wherever it leads."""
    listed = {MANIFEST_FILE, *(file.path for file in manifest.files)}
    files = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    extra = sorted(name for name in files - listed if not _is_hidden(name))
    if extra:
        more = f" and {len(extra) - _SHOWN} more" if len(extra) > _SHOWN else ""
        raise FormatError(
            "has files that its manifest does not list",
            where=folder,
            found=", ".join(f"`{name}`" for name in extra[:_SHOWN]) + more,
            expected=f"`{MANIFEST_FILE}` and the {len(manifest.files)} files that it lists",
            fix="move them out of the folder, or take the bundle from its source again",
        )


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _verify(record: FileRecord, folder: Path) -> None:
    path = folder / record.path
    if not path.is_file():
        raise FileError(
            "is missing in the bundle", where=path, expected=f"{record.bytes} bytes", fix="copy the whole bundle again"
        )
    _check_inside(path, folder)
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


def _check_inside(path: Path, folder: Path) -> None:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise FileError(
            "is a link that leads out of the bundle",
            where=path,
            found=path.resolve(),
            expected=f"a file in {folder}",
            fix="put the file itself in its place",
        )
