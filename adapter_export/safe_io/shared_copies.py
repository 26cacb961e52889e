"""Verified copies of large files that all processes of a user share, on Linux.

ONNX Runtime maps weights, so sessions run from copies that only this user can write. A copy is hashed once: its seal
records device, inode, size and times of the copy and of the files whose bytes it equals. A private folder has a hard
link to it, so the number of links shows whether a copy is in use.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from adapter_export.safe_io.regular_files import copy_hashed, copy_open, open_regular, sha256_of_open

try:
    import fcntl
except ImportError:  # Windows, where nothing is shared
    fcntl = None  # type: ignore[assignment]

LEAST_BYTES = 16 * 2**20
"""Size from which files are shared; smaller ones are copied within milliseconds."""

UNUSED_SECONDS = 24 * 60 * 60.0
"""Time after which an unused copy is removed."""

MOST_UNUSED_BYTES = 16 * 2**30
"""Maximum size of all unused copies, and at most a quarter of the disk."""

_QUIET_SECONDS = 2.0
"""Age from which a file's times tell it from a later version: some file systems count in steps of two seconds."""

_WAIT_SECONDS = 60.0
"""Maximum time to wait for another process that makes the same copy."""

_MOST_SOURCES = 16
"""Maximum number of files that a seal remembers."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")

_MOUNTS = Path("/proc/self/mountinfo")

_State = tuple[int, int, int, int, int]
"""Device, inode, size, and times of the last change of contents and of attributes, in nanoseconds."""


def temporary_root() -> Path:
    """Return the folder for large temporary files: `TMPDIR`, or one on disk, since `/tmp` may be in memory."""
    chosen = tempfile.tempdir or any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    large = Path("/var/tmp")
    return Path(tempfile.gettempdir()) if chosen or not os.access(large, os.W_OK) else large


def copy_shared(path: Path, copy: Path, size: int, sha256: str, *, rehash: bool = False) -> str:
    """Link a verified copy of a file into a private folder, and return the SHA-256 of the file's bytes.

    Where copies cannot be shared, this is `copy_hashed`.

    Args:
        path: the file.
        copy: the link, in a folder in `temporary_root()`.
        size: of the file, in bytes.
        sha256: the expected SHA-256.
        rehash: hash the file even if it is unchanged since its last comparison.

    Raises:
        FileError: as `copy_hashed`.
        OSError: there is no room for the copy.
    """
    folder = _shared_folder(create=True) if size >= LEAST_BYTES else None
    if folder is not None:
        try:
            with _lock_seal(folder, sha256, _WAIT_SECONDS) as seal:
                return seal.link(path, copy, size, rehash=rehash)
        except OSError:  # no room, no hard links or locks, or the other process takes too long
            copy.unlink(missing_ok=True)
            remove_unused(most=0)
    return copy_hashed(path, copy, size)


def unlink_copies(folder: Path) -> None:
    """Remove the links of a private folder to shared copies; the copies stay verified."""
    shared = _shared_folder()
    linked = [path for path in folder.rglob("*") if shared and path.is_file() and path.lstat().st_nlink > 1]
    if not linked or shared is None:
        return
    copies = {path.lstat().st_ino: path.name for path in shared.iterdir() if path.suffix != ".json"}
    for path in linked:
        sha256 = copies.get(path.lstat().st_ino)
        if sha256 is not None:
            with suppress(OSError), _lock_seal(shared, sha256, 1.0) as seal:
                seal.unlink(path)
    if _in_memory(shared):
        remove_unused(most=0)


def remove_unused(most: int | None = None) -> None:
    """Remove shared copies that no process uses, the least recently used first.

    Args:
        most: maximum size of the remaining ones, in bytes. Default: `MOST_UNUSED_BYTES`, without those that have been
            unused for `UNUSED_SECONDS`.
    """
    folder = _shared_folder()
    if folder is None:
        return
    with suppress(OSError):
        disk = os.statvfs(folder)
        limit = min(MOST_UNUSED_BYTES, disk.f_frsize * disk.f_blocks // 4) if most is None else most
        seals = sorted((path.stat().st_mtime, path.stem) for path in folder.glob("*.json"))
        sizes = {name: _unused_bytes(folder / name) for _, name in seals}
        for used, name in seals:
            expired = time.time() - used > UNUSED_SECONDS
            if sizes[name] is not None and (expired or sum(filter(None, sizes.values())) > limit or not sizes[name]):
                with suppress(OSError), _lock_seal(folder, name, 0.0) as seal:
                    seal.remove_if_unused()
                sizes[name] = 0


def _unused_bytes(copy: Path) -> int | None:
    """Return the size of a copy, 0 if it is missing, or `None` if it is in use."""
    try:
        status = copy.lstat()
    except FileNotFoundError:
        return 0
    return status.st_size if status.st_nlink == 1 else None


def _shared_folder(*, create: bool = False) -> Path | None:
    """Return the folder of shared copies, which only this user may write, or `None` if there cannot be one."""
    if fcntl is None or not _BOOT.exists():
        return None
    folder = temporary_root() / f"adapter-export-shared-{os.geteuid()}"
    try:
        if create:
            with suppress(FileExistsError):
                # other users must not be able to exchange verified copies
                folder.mkdir(0o700)
        status = folder.lstat()  # another user may have made it
    except OSError:
        return None
    private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return folder if private else None


def _in_memory(folder: Path) -> bool:
    """Return whether files of a folder are in memory, where unused ones cost more than a copy."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = [line.split() for line in _MOUNTS.read_text("utf-8", "replace").splitlines()]
    return any(line[2] == number and line[line.index("-") + 1] in ("tmpfs", "ramfs") for line in lines)


@contextmanager
def _lock_seal(folder: Path, sha256: str, seconds: float) -> Iterator[_Seal]:
    """Yield the seal of a copy, locked against other processes and threads.

    Raises:
        OSError: another one holds the lock for longer, or the file system has no locks.
    """
    deadline = time.monotonic() + seconds
    while True:
        file = os.open(folder / f"{sha256}.json", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            _lock(file, deadline)
            if os.fstat(file).st_nlink:  # its previous owner may have removed it after it was opened
                yield _Seal.read(file, folder / sha256)
                return
        finally:
            os.close(file)


def _lock(file: int, deadline: float) -> None:
    """Acquire a lock by a deadline; `flock` itself would wait for a stopped process for ever."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@dataclass
class _Seal:
    """Record of a shared copy: which file was hashed, and which files have the same bytes."""

    file: int
    copy: Path
    state: _State | None
    sources: list[_State]

    @classmethod
    def read(cls, file: int, copy: Path) -> _Seal:
        """Read a locked seal. One of an earlier boot counts for nothing: a power failure loses unwritten blocks."""
        try:
            record = json.loads(os.pread(file, 2**16, 0))
            if record["boot"] == _BOOT.read_text("ascii"):
                return cls(file, copy, _parsed(record["copy"]), [_parsed(source) for source in record["sources"]])
        except (ValueError, KeyError, TypeError):  # new, or its writer was killed
            pass
        return cls(file, copy, None, [])

    def link(self, path: Path, link: Path, size: int, *, rehash: bool) -> str:
        """Link the copy of a file, made if needed; return the SHA-256 of the file, without a link if it is wrong."""
        sha256 = self.copy.name
        if self._verified():
            if rehash or _state_of(path) not in self.sources:
                digest = self._compare(path, lambda file: sha256_of_open(file, path))
                if digest != sha256:
                    return digest
            # this changes the times of the copy, which are written below
            os.link(self.copy, link)
        else:
            digest = self._renew(path, link, size)
            if digest != sha256:
                return digest
        self._write()
        return sha256

    def unlink(self, link: Path) -> None:
        """Remove a link to the copy, which changes its times."""
        verified = self._verified()
        link.unlink()
        if verified:
            self._write()

    def remove_if_unused(self) -> None:
        """Remove the copy and this record, unless a private folder has a link."""
        if _unused_bytes(self.copy) is not None:
            self.copy.unlink(missing_ok=True)
            self.copy.with_suffix(".json").unlink(missing_ok=True)

    def _verified(self) -> bool:
        return self.state is not None and _state_of(self.copy) == self.state

    def _renew(self, path: Path, link: Path, size: int) -> str:
        """Copy the file to `link`, whose folder is removed if this process is killed, and share it if it is right."""
        self.copy.unlink(missing_ok=True)  # sessions keep the links that they have
        self.sources = []
        digest = self._compare(path, lambda file: copy_open(file, path, link, size))
        if digest == self.copy.name:
            # several processes map these bytes
            link.chmod(0o400)
            os.link(link, self.copy)
        return digest

    def _compare(self, path: Path, digest_of: Callable[[BufferedReader], str]) -> str:
        """Return the SHA-256 of a file, and remember the file if it is that of the copy."""
        began = time.time()
        with open_regular(path) as file:
            before = _state(os.fstat(file.fileno()))
            digest = digest_of(file)
            unchanged = _state(os.fstat(file.fileno())) == before
        # a change within the resolution of the file system's clock leaves no trace
        if digest == self.copy.name and unchanged and max(before[3:]) / 1e9 < began - _QUIET_SECONDS:
            self.sources = [*(known for known in self.sources if known != before), before][-_MOST_SOURCES:]
        return digest

    def _write(self) -> None:
        self.state = _state_of(self.copy)
        record = {"boot": _BOOT.read_text("ascii"), "copy": self.state, "sources": self.sources}
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, json.dumps(record).encode(), 0)


def _state_of(path: Path) -> _State | None:
    try:
        return _state(path.stat())
    except OSError:
        return None


def _parsed(numbers: list[int]) -> _State:
    device, inode, size, contents, attributes = map(int, numbers)
    return device, inode, size, contents, attributes


def _state(status: os.stat_result) -> _State:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
