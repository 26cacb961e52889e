"""Outputs: checked before the work starts, written under a temporary name, then renamed."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import socket
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import local
from typing import Protocol, runtime_checkable

from adapter_export.errors import AbandonedFileWarning, BusyError, FileError, OutputExistsError, WriteError
from adapter_export.safe_io.private_folder import PrivateFolder

try:
    import fcntl
except ImportError:  # Windows has no `flock`: concurrent writers are not detected there
    fcntl = None  # type: ignore[assignment]

_CURRENT_FOLDER, _EXCHANGE = -100, 2
"""Arguments of Linux's `renameat2`: AT_FDCWD and RENAME_EXCHANGE."""

_NOTE = "target"
"""File in a private folder that contains the path of an output."""

_SWAP = 2
"""RENAME_SWAP of macOS's `renamex_np`."""


@runtime_checkable
class Located(Protocol):
    """An object read from a path, such as a base."""

    @property
    def path(self) -> Path | None:
        """The file or folder; `None` for an object created in memory."""


@dataclass(frozen=True)
class Output:
    """A file or folder that a call writes.

    Attributes:
        path: the path to write.
        force: whether to replace an existing file or folder.
    """

    path: Path
    force: bool = False

    def __post_init__(self) -> None:
        if self.path.parts and self.path.parts[0] in ("hf:", "oci:"):
            fix = "write to a local path, then upload bundles and adapters with `push`"
            raise FileError("is not a local path", where=self.path, fix=fix)

    def ensure_writable(self, *, folder: bool = False, sources: object = ()) -> None:
        """Check before the work starts that the output may be written. `file` and `folder` check again.

        Args:
            folder: whether the output is a folder. A file never replaces a folder.
            sources: inputs of the call: paths, bases, and lists or mappings of these.

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
            actual = "a git repository" if (place / ".git").exists() else "your home folder, or a parent of it"
            raise FileError("would be replaced", where=path, found=actual, fix="choose another name for the output")
        for source in _paths(sources):
            if place in (source.resolve(), *source.resolve().parents):
                raise FileError(
                    "would overwrite an input",
                    where=path,
                    found=f"`{source}`",
                    fix="choose another name for the output",
                )
        if path.is_dir() and not (folder or path.is_symlink()):
            fix = "choose a file in the folder, or another path"
            raise FileError("is a folder", where=path, expected="the name of a file", fix=fix)

    @contextmanager
    def file(self) -> Iterator[Path]:
        """Yield a temporary path; its file becomes the output if the block succeeds.

        Parent folders are created. With `force`, the existing file stays until the new one is complete and synced to
        disk.

        Raises:
            OutputExistsError: the path exists, and `force` is false.
            BusyError: another process writes there.
            WriteError: the operating system refused a write; the path is unchanged.
        """
        target = Path(os.path.abspath(self.path))  # noqa: PTH100 `resolve` would follow a link that is to be replaced
        self._check_free(target)
        temporary = beside(target, "tmp")
        missing_folders = [folder for folder in target.parents if not folder.exists()]
        finished = False
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with hold_lock(target):
                self._check_free(target)  # the previous lock owner may have created it
                try:
                    yield temporary
                    self._check_free(target)
                    # before the rename: after a power failure, the name must not belong to incomplete contents
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
                for folder in missing_folders:
                    with suppress(OSError):
                        folder.rmdir()

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yield a temporary folder, which becomes the output if the block succeeds.

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
                "is the current folder, or a parent of it",
                where=self.path,
                fix="choose another name, or change to another folder",
            )
        if os.path.lexists(target) and not self.force:
            raise OutputExistsError(self.path)


def _paths(sources: object) -> Iterator[Path]:
    """Yield the existing paths among the inputs of a call, including the folder of `NAME=FOLDER`."""
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
        for source in sources:
            yield from _paths(source)


@contextmanager
def change_folder(path: Path, without: Collection[str]) -> Iterator[Path]:
    """Yield a temporary copy of a folder, which replaces `path` if the block succeeds.

    The files are hard links where the file system supports them: replace a file to change it, or exclude it by
    `without` (relative paths with `/`); never write into it. Open files of the old folder keep their contents.

    Raises:
        FileError: `path` is the current folder or a parent of it, which cannot be replaced.
        WriteError: the operating system refused a write; `path` is unchanged.
    """
    folder = path.resolve()
    with Output(folder, force=True).folder() as temporary:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).as_posix()
            if file.is_file() and name not in without:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(file.resolve(), temporary / name)
                except OSError:  # a file system without hard links, or a file of another user
                    shutil.copy2(file, temporary / name)
        yield temporary


_PATIENCE_S = 1.0
"""Seconds to wait for a lock: another process may just be removing what a killed writer of this path left."""

_held = local()
"""Paths locked by each thread, in `paths`."""


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Lock a path against other writers until the block ends; reentrant within a thread.

    The lock is a sibling file that names its owner, locked by `flock`: the system releases it when the process ends.
    Partial files of a killed process are removed, with an `AbandonedFileWarning`.

    Raises:
        BusyError: another process or thread holds the lock.
        WriteError: the operating system refused the lock.
    """
    target = Path(os.path.abspath(path))  # noqa: PTH100 as in `Output.file`
    held: set[Path] = _held.__dict__.setdefault("paths", set())
    if target in held or fcntl is None:
        yield
        return
    lock = target.with_name(f".{target.name}.adapter-export.lock")
    # before the lock: from then on, another process finds what this one leaves if it is killed
    with _keep_note(target):
        file = _acquire(lock, path)
        held.add(target)
        try:
            _recover(target)
            yield
        finally:
            held.discard(target)
            with suppress(OSError):
                # before it is released: later, it may be the file of the next owner
                lock.unlink()
            os.close(file)


@contextmanager
def _keep_note(target: Path) -> Iterator[None]:
    """Note a path in a private folder until the block ends; `recover_noted` reads the notes of killed processes."""
    folder = _note(target)
    try:
        yield
    finally:
        if folder is not None:
            folder.remove()


def _note(target: Path) -> PrivateFolder | None:
    try:
        folder = PrivateFolder()
        (folder.path / _NOTE).write_bytes(os.fsencode(target))
    except OSError:  # no room for temporary files: only the next writer of this path will recover it
        return None
    return folder


def recover_noted(folder: Path) -> None:
    """Remove what a killed process left beside the path that it noted in its private folder, if any."""
    note = folder / _NOTE
    if note.exists():
        # another process recovers it, or its folder is gone
        with suppress(OSError, BusyError, WriteError), hold_lock(Path(os.fsdecode(note.read_bytes()))):
            pass


def _acquire(lock: Path, named: Path) -> int:
    """Acquire a lock, and return its open file."""
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while True:
            # without following a link, whose target would be truncated
            file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            with ExitStack() as on_failure:
                on_failure.callback(os.close, file)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise BusyError(named, os.read(file, 200).decode("utf-8", "replace")) from None
                    time.sleep(_PATIENCE_S / 50)
                    continue
                if os.fstat(file).st_nlink:  # its previous owner may have removed it after it was opened
                    on_failure.callback(lock.unlink)
                    os.ftruncate(file, 0)
                    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    on_failure.pop_all()
                    return file
    except OSError as error:
        raise WriteError(named, error.strerror or error) from error


def _recover(target: Path) -> None:
    """Remove partial files of killed writers beside the locked target, and restore a moved original."""
    left = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.(tmp|old)")
    for path in sorted(path for path in target.parent.iterdir() if left.fullmatch(path.name)):
        if path.suffix == ".old" and not os.path.lexists(target):
            path.rename(target)
            done = "restored: the process replacing it was killed"
        else:
            _remove(path)
            done = "removed: the process writing it was killed"
        warnings.warn(f"{path}: {done}", AbandonedFileWarning, stacklevel=2)


def exchange(path: Path, other: Path) -> bool:
    """Swap two paths of one file system atomically.

    Returns false if the system or the file system does not support it.
    """
    first, second = os.fsencode(path), os.fsencode(other)
    library = None if os.name == "nt" else ctypes.CDLL(None)
    linux, mac = getattr(library, "renameat2", None), getattr(library, "renamex_np", None)
    if linux is not None:
        return int(linux(_CURRENT_FOLDER, first, _CURRENT_FOLDER, second, _EXCHANGE)) == 0
    return mac is not None and int(mac(first, second, _SWAP)) == 0


def _move_into_place(temporary: Path, target: Path) -> None:
    """Swap the two paths; if unsupported, move the target aside, and restore it if renaming fails."""
    if temporary.is_file() and not target.is_dir():
        # one rename replaces a file atomically; a folder cannot be replaced by one
        temporary.replace(target)
        return
    if os.path.lexists(target) and exchange(temporary, target):
        _remove(temporary)
        return
    aside = beside(target, "old")
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
    """Flush a file, or a folder with its contents, to disk."""
    if path.is_symlink() or not path.is_dir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return
    for folder, _, names in os.walk(path):
        for name in names:
            file_path = Path(folder, name)
            if file_path.stat().st_nlink == 1:  # hard links of existing files need no flush
                _sync(file_path)
        _sync_folder(Path(folder))


def _sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk, where the system can open folders."""
    if os.name == "nt":
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def beside(target: Path, ending: str) -> Path:
    """Return a new path beside a locked target, which the next writer removes if this process is killed."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{ending}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
