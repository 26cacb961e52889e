"""Outputs: checked before the work begins, and written under a temporary name so that nothing is half-written."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import socket
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import local
from typing import Protocol, runtime_checkable

from adapter_export.errors import AbandonedFileWarning, BusyError, FileError, OutputExistsError, WriteError

try:
    import fcntl
except ImportError:  # Windows has no `flock`, so writers are not kept apart there
    fcntl = None  # type: ignore[assignment]

_CURRENT_FOLDER, _EXCHANGE = -100, 2
"""Arguments of Linux's `renameat2`: paths are relative to the current folder; exchange the two paths."""

_SWAP = 2
"""Flag of macOS's `renamex_np` that exchanges the two paths."""


@runtime_checkable
class Located(Protocol):
    """An object that was read from a path, such as a base."""

    @property
    def path(self) -> Path | None:
        """The file or folder; `None` for an object that was made in memory."""


@dataclass(frozen=True)
class Output:
    """A file or folder that a call writes.

    Attributes:
        path: where it goes.
        force: replace an existing file or folder.
    """

    path: Path
    force: bool = False

    def __post_init__(self) -> None:
        if self.path.parts and self.path.parts[0] in ("hf:", "oci:"):
            fix = "write it to a path on this machine; `push` sends bundles and adapters"
            raise FileError("is no path on this machine", where=self.path, fix=fix)

    def ensure_writable(self, *, folder: bool = False, sources: object = ()) -> None:
        """Check before the work begins that the output may be written. `file` and `folder` check again.

        Args:
            folder: the output is a folder; a file never replaces a folder.
            sources: inputs of the call, as the caller gave them: paths, bases, and lists or mappings of these.

        Raises:
            OutputExistsError: the path exists, and `force` is false.
            FileError: the output is a file and the path a folder, or writing would delete a source, the user's home
                folder or a repository.
        """
        path = self.path
        if not os.path.lexists(path):
            return
        if not self.force:
            raise OutputExistsError(path)
        place, home = path.resolve(), Path(os.path.expanduser("~"))  # noqa: PTH111 `Path.home` may be an error
        if not path.is_symlink() and (place in (home, *home.parents) or (place / ".git").exists()):
            found = "a git repository" if (place / ".git").exists() else "your home folder, or one above it"
            raise FileError("would be replaced", where=path, found=found, fix="choose another name for the output")
        for source in _paths(sources):
            if place in (source.resolve(), *source.resolve().parents):
                raise FileError(
                    "would replace what it is made of, which would be lost",
                    where=path,
                    found=f"`{source}`",
                    fix="choose another name for the output",
                )
        if path.is_dir() and not (folder or path.is_symlink()):
            fix = "name a file in it, or another"
            raise FileError("is a folder", where=path, expected="the name of a file", fix=fix)

    @contextmanager
    def file(self) -> Iterator[Path]:
        """Yield a temporary path; the file written there becomes the output if the block ends without an error.

        Parent folders are created. With `force`, the existing file stays until the new one is complete and synced to
        disk.

        Raises:
            OutputExistsError: the path exists, and `force` is false.
            BusyError: another process writes there.
            WriteError: the operating system refused a write; the path is unchanged.
        """
        target = Path(os.path.abspath(self.path))  # noqa: PTH100 `resolve` would follow a link that is to be replaced
        self._check_free(target)
        temporary = _beside(target, "tmp")
        made = [folder for folder in target.parents if not folder.exists()]
        finished = False
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target):
                self._check_free(target)  # the previous owner of the lock may have written it
                try:
                    yield temporary
                    self._check_free(target)
                    _sync(temporary)
                    _move_into_place(temporary, target)
                    _sync_folder(target.parent)
                    finished = True
                finally:
                    if not finished:
                        _remove(temporary)
        except OSError as error:
            raise WriteError(self.path, error.strerror or error) from error
        finally:
            if not finished:
                for folder in made:
                    with suppress(OSError):
                        folder.rmdir()

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yield a temporary folder, which becomes the output if the block ends without an error.

        Raises:
            OutputExistsError: the path exists, and `force` is false.
            FileError: the path is the current folder or one of its parents.
            BusyError: another process writes there.
            WriteError: the operating system refused a write; the path is unchanged.
        """
        with self.file() as temporary:
            temporary.mkdir()
            yield temporary

    def _check_free(self, target: Path) -> None:
        here = Path.cwd()
        if target == here or target in here.parents:
            raise FileError(
                "is the folder that you work in, or one above it",
                where=self.path,
                fix="choose another name, or work in another folder",
            )
        if os.path.lexists(target) and not self.force:
            raise OutputExistsError(self.path)


def _paths(sources: object) -> Iterator[Path]:
    """Yield the existing paths among inputs of a call; of `NAME=FOLDER` also the folder."""
    if isinstance(sources, Located):
        sources = sources.path
    if isinstance(sources, str | Path):
        for name in {str(sources), str(sources).rpartition("=")[2]} - {""}:
            with suppress(OSError, ValueError):  # not a valid file name
                if Path(name).exists():
                    yield Path(name)
    elif isinstance(sources, Mapping):
        yield from _paths(list(sources.values()))
    elif isinstance(sources, Sequence):
        for one in sources:
            yield from _paths(one)


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
    with Output(folder, force=True).folder() as temporary:
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
    target = Path(os.path.abspath(path))  # noqa: PTH100 as in `Output.file`
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
