"""Files are written under a temporary name and renamed, so nothing is half-written or lost; JSON in one way."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import local

from adapter_export.errors import (
    AbandonedFileWarning,
    BusyError,
    FileError,
    FormatError,
    HashError,
    OutputExistsError,
    WriteError,
)

try:
    import fcntl
except ImportError:  # Windows; there nobody is kept out
    fcntl = None  # type: ignore[assignment]

_CURRENT_FOLDER, _EXCHANGE = -100, 2
"""Of Linux's `renameat2`: what paths are relative to, and the flag by which two places exchange what they hold."""

_SWAP = 2
"""Of macOS's `renamex_np`: likewise."""


CACHE_VARIABLE = "ADAPTER_EXPORT_CACHE"
"""The environment variable with the folder of what may be deleted at any time; empty, nothing is kept."""


def cache_folder() -> Path | None:
    """Return the folder of what may be deleted at any time; none where nothing is to be kept."""
    given = os.environ.get(CACHE_VARIABLE)
    if given is not None:
        return Path(given) if given else None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "adapter-export"


@contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path; the file written there takes the place of `path` if the block ends without an error.

    Folders above it are made. With `force`, what is there is replaced; it stays until the new file is complete.

    It is on the disk when the block has ended, also if the power fails then.

    Raises:
        OutputExistsError: `path` exists and `force` is not given.
        BusyError: another process writes there.
        WriteError: the operating system refused a write; `path` is as it was before.
    """
    target = Path(os.path.abspath(path))  # noqa: PTH100 `resolve` would follow a link that is to be replaced
    _check_free(target, path, force)
    temporary = _beside(target, "tmp")
    made = [folder for folder in target.parents if not folder.exists()]
    finished = False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            _check_free(target, path, force)  # who had the lock before may have written it
            try:
                yield temporary
                _check_free(target, path, force)
                _sync(temporary)
                _move_into_place(temporary, target)
                _sync_folder(target.parent)
                finished = True
            finally:
                if not finished:
                    _remove(temporary)
    except OSError as error:
        raise WriteError(path, error.strerror or error) from error
    finally:
        if not finished:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()


@contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder, which takes the place of `path` if the block ends without an error; else nothing stays.

    Folders above it are made. With `force`, what is there is replaced; it stays until the new folder is complete.

    Raises:
        OutputExistsError: `path` exists and `force` is not given.
        FileError: `path` is the current folder or one above it, which nothing may replace.
        WriteError: the operating system refused a write; `path` is as it was before.
    """
    with new_file(path, force=force) as temporary:
        temporary.mkdir()
        yield temporary


@contextmanager
def changed_folder(path: Path, without: Collection[str]) -> Iterator[Path]:
    """Yield a temporary folder with the same files, which takes the place of `path` if the block ends without an error.

    The files are the same ones, under second names (hard links) where that can be: one that is to change must be left
    out (`without`, paths from the folder with `/`) or replaced, never written into. Files of the old folder that are
    open stay as they were.

    Raises:
        FileError: `path` is the current folder or one above it, which nothing may replace.
        WriteError: the operating system refused a write; `path` is as it was before.
    """
    folder = path.resolve()
    with new_folder(folder, force=True) as temporary:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).as_posix()
            if file.is_file() and name not in without:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(file.resolve(), temporary / name)
                except OSError:  # a file system without hard links, or a file that is not the user's
                    shutil.copy2(file, temporary / name)
        yield temporary


_held = local()
"""The paths that a thread has locked, in `paths`."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep all others from writing at a path until the block ends; the thread that holds it may lock it again.

    The lock is a file beside it that names its owner, held by `flock`: the system releases it when the process ends in
    whatever way. What a killed process left half-written is removed, with an `AbandonedFileWarning`.

    Raises:
        BusyError: another process or thread writes there.
        WriteError: the operating system refused the lock.
    """
    target = Path(os.path.abspath(path))  # noqa: PTH100 as in `new_file`
    held: set[Path] = _held.__dict__.setdefault("paths", set())
    if target in held or fcntl is None:
        yield
        return
    lock = target.with_name(f".{target.name}.adapter-export.lock")
    file = _acquired(lock, path)
    held.add(target)
    try:
        _recover(target)
        yield
    finally:
        held.discard(target)
        with suppress(OSError):
            lock.unlink()
        os.close(file)


def _acquired(lock: Path, named: Path) -> int:
    """Return the open file of a lock that is held now."""
    try:
        while True:
            file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            with ExitStack() as on_failure:
                on_failure.callback(os.close, file)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise BusyError(named, os.read(file, 200).decode("utf-8", "replace")) from None
                if os.fstat(file).st_nlink:  # or else its owner has removed it since it was opened
                    on_failure.callback(lock.unlink)
                    os.ftruncate(file, 0)
                    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    on_failure.pop_all()
                    return file
    except OSError as error:
        raise WriteError(named, error.strerror or error) from error


def _recover(target: Path) -> None:
    """Remove what killed writers left beside the target, which is locked; what stepped aside comes back."""
    left = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.(tmp|old)")
    for path in sorted(path for path in target.parent.iterdir() if left.fullmatch(path.name)):
        if path.suffix == ".old" and not os.path.lexists(target):
            path.rename(target)
            done = "is back: the process that was to replace it was killed"
        else:
            _remove(path)
            done = "was removed: the process that wrote it was killed"
        warnings.warn(f"{path}: {done}", AbandonedFileWarning, stacklevel=2)


def exchange(one: Path, other: Path) -> bool:
    """Let two paths of one file system exchange what they hold, at one stroke: at no time one of them holds nothing.

    Returns false where the system or the file system cannot do it.
    """
    first, second = os.fsencode(one), os.fsencode(other)
    library = None if os.name == "nt" else ctypes.CDLL(None)
    linux, mac = getattr(library, "renameat2", None), getattr(library, "renamex_np", None)
    if linux is not None:
        return int(linux(_CURRENT_FOLDER, first, _CURRENT_FOLDER, second, _EXCHANGE)) == 0
    return mac is not None and int(mac(first, second, _SWAP)) == 0


def _check_free(target: Path, named: Path, force: bool) -> None:
    here = Path.cwd()
    if target == here or target in here.parents:
        raise FileError(
            "is the folder that you work in, or one above it",
            where=named,
            fix="choose another name, or work in another folder",
        )
    if os.path.lexists(target) and not force:
        raise OutputExistsError(named)


def _move_into_place(temporary: Path, target: Path) -> None:
    """Exchange the two; where that cannot be, what is there steps aside and comes back if the renaming fails."""
    if temporary.is_file() and not target.is_dir():
        temporary.replace(target)
        return
    if os.path.lexists(target) and exchange(temporary, target):
        _remove(temporary)
        return
    aside = _beside(target, "old")
    occupied = os.path.lexists(target)
    if occupied:
        target.rename(aside)
    try:
        temporary.rename(target)
    except OSError:
        if occupied:
            aside.rename(target)
        raise
    _remove(aside)


def _sync(path: Path) -> None:
    """Wait until a file or a folder, with all that is in it, is on the disk."""
    if path.is_symlink() or not path.is_dir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return
    for folder, _, names in os.walk(path):
        for name in names:
            file_path = Path(folder, name)
            if file_path.stat().st_nlink == 1:  # a second name of a file that was there already
                _sync(file_path)
        _sync_folder(Path(folder))


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system opens folders."""
    if os.name == "nt":
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{ending}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def canonical_json(document: object) -> bytes:
    """Return the one encoding of a document: UTF-8, keys sorted by code point, indent of 2, a newline at the end.

    Raises:
        FormatError: it holds something that JSON cannot say, such as NaN.
    """
    try:
        text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(
            "holds a value that JSON cannot say", found=error, expected="strings, finite numbers, lists and objects"
        ) from error


_NO_CHECKSUM = "0" * 64


def checked_json(document: Mapping[str, object]) -> bytes:
    """Return the encoding of an object with a `checksum` of itself: the sha256 of these bytes with zeros as its digits.

    Raises:
        FormatError: as `canonical_json`.
    """
    data = canonical_json({**document, "checksum": _NO_CHECKSUM})
    return canonical_json({**document, "checksum": hashlib.sha256(data).hexdigest()})


def check_checksum(data: bytes, checksum: str | None, where: object) -> None:
    """Raise `HashError` where a file with a checksum of itself has other bytes than when it was written.

    A flipped bit in a factor or a label would be a wrong answer that nobody notices.
    """
    if checksum is None:
        return
    found = hashlib.sha256(data.replace(checksum.encode(), _NO_CHECKSUM.encode())).hexdigest()
    if found != checksum:
        fix = "take the file from its source again; if you changed it on purpose, delete its key `checksum`"
        raise HashError(where, found=found, expected=checksum, fix=fix)


def printable_json(document: object, *, indent: int | None = None) -> str:
    """Return JSON for people and programs, in which signs that could steer a terminal or end a line are escapes.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False, default=_plain)
    if not text.replace("\n", "").isprintable():
        text = "".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text)
    return text


def _plain(value: object) -> object:
    """Return paths and NumPy scalars as what JSON knows."""
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)
