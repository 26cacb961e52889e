"""Readers of untrusted files: regular files only, up to a maximum size."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import IO

from adapter_export.errors import FileError, FormatError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MOST_BYTES = 16 * 2**30
"""Maximum size of a file that is read into memory."""

MOST_TEXT_BYTES = 2 * 2**30
"""Maximum size of a text file, such as a table, that is read into memory."""

_BLOCK_BYTES = 2**20

_CLONE = 0x40049409
"""Linux's request FICLONE: let a file share the blocks of another one until either is written to."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading, without blocking on a FIFO, a device or a socket.

    Raises:
        FileError: the file is missing, not regular, or not readable.
    """

    def unblocked(name: str, flags: int) -> int:
        # opening a FIFO would wait for a writer
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        file = open(path, "rb", opener=unblocked)  # noqa: SIM115 - `Path.open` takes no opener
    except (OSError, ValueError) as error:  # ValueError: NUL in a name
        raise unreadable(path, error) from error
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode):
        return file
    file.close()
    raise FileError(
        "is not a regular file",
        where=path,
        found="a FIFO" if stat.S_ISFIFO(mode) else "a device or a socket",
        expected="a file on disk",
        fix="copy its contents to a file first",
    )


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a whole file of at most `most` bytes.

    Raises:
        FileError: see `open_regular`; or the file is larger.
    """
    blocks = list[bytes]()
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            requested = size + 1  # never `most`: Python allocates the requested size
            while size <= most and (block := file.read(requested)):
                blocks.append(block)
                size, requested = max(size, sum(map(len, blocks))), _BLOCK_BYTES
        except (OSError, MemoryError) as error:
            raise unreadable(path, error) from error
    if size > most:
        raise _too_large(path, f"{size:,} bytes", most)
    return b"".join(blocks)


def map_bytes(path: Path) -> mmap.mmap:
    """Map a whole file into memory. The file must not change: SIGBUS kills readers of a truncated file.

    Raises:
        FileError: see `open_regular`; or the file is empty.
    """
    with open_regular(path) as file:
        try:
            if sys.version_info >= (3, 13):  # older versions keep a descriptor open
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ, trackfd=False)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error


def read_text(path: Path, most: int = MOST_TEXT_BYTES) -> str:
    """Read a whole UTF-8 file of at most `most` bytes.

    Raises:
        FileError: see `read_bytes`.
        FormatError: the file is not UTF-8.
    """
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise FormatError(
            "is not UTF-8", where=path, found=error.reason, expected="a text", fix="save the file as UTF-8"
        ) from error


def read_stream(path: Path, most: int = MOST_TEXT_BYTES) -> bytes:
    """Read a file or a shell pipe, blocking until its end.

    Raises:
        FileError: the path is missing, a folder, not readable, or larger than `most` bytes.
    """
    blocks, left = list[bytes](), most
    try:
        with path.open("rb", buffering=0) as file:
            while left >= 0 and (block := file.read(min(left + 1, _BLOCK_BYTES))):
                blocks.append(block)
                left -= len(block)
    except (OSError, ValueError, MemoryError) as error:
        raise unreadable(path, error) from error
    if left < 0:
        raise _too_large(path, "more", most)
    return b"".join(blocks)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in lower-case hexadecimal, read in blocks.

    Raises:
        FileError: as `open_regular`.
    """
    with open_regular(path) as file:
        return sha256_of_open(file, path)


def sha256_of_open(file: BufferedReader, path: Path) -> str:
    """Return the sha256 of an open file; FileError, which names `path`, if it cannot be read."""
    try:
        return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def copy_hashed(path: Path, copy: Path, size: int) -> str:
    """Copy a file of `size` bytes to a new path, and return the sha256 of the copy.

    Raises:
        FileError: as `open_regular`.
        OSError: the copy cannot be written.
    """
    with open_regular(path) as file:
        return copy_open(file, path, copy, size)


def copy_open(file: BufferedReader, path: Path, copy: Path, size: int) -> str:
    """Copy an open file; arguments, result and errors as of `copy_hashed`.

    The copy shares the blocks of the file where the file system can (Btrfs, XFS), and is hashed afterwards.
    """
    with copy.open("xb+") as copied:
        if not _try_clone(file, copied):
            return _copy_blocks(file, path, copied, size)
        copied.truncate(min(size, os.fstat(copied.fileno()).st_size))
        # of the copy: the file may change after it was cloned
        return hashlib.file_digest(copied, "sha256").hexdigest()


def _try_clone(file: IO[bytes], copied: IO[bytes]) -> bool:
    """Return whether an empty file could be made a clone of another one."""
    if fcntl is None or sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(copied.fileno(), _CLONE, file.fileno())
    except OSError:  # another file system, or one without clones
        return False
    return True


def _copy_blocks(file: BufferedReader, path: Path, copied: IO[bytes], size: int) -> str:
    """Write each block in a thread while it is hashed, which takes a third less time."""
    digest, block = hashlib.sha256(), memoryview(bytearray(min(max(size, 1), _BLOCK_BYTES)))
    _reserve(copied.fileno(), size)
    with ThreadPoolExecutor(1) as writer:
        while size > 0:
            try:
                read = file.readinto(block[: min(size, _BLOCK_BYTES)])
            except OSError as error:
                raise unreadable(path, error) from error
            if not read:
                break
            written = writer.submit(copied.write, block[:read])
            digest.update(block[:read])
            written.result()
            size -= read
    copied.truncate()  # the file may have become shorter
    return digest.hexdigest()


def _reserve(file: int, size: int) -> None:
    """Allocate the space of a new file in advance, where supported: writing then takes a third less time."""
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise


def sha256_of_part(path: Path, start: int, size: int) -> str:
    """Return the sha256 of `size` bytes of a file, starting at `start`, read in blocks.

    Raises:
        FileError: as `open_regular`.
    """
    digest, block = hashlib.sha256(), memoryview(bytearray(min(size, _BLOCK_BYTES)))
    with open_regular(path) as file:
        try:
            file.seek(start)
            while size and (read := file.readinto(block[:size])):
                digest.update(block[:read])
                size -= read
        except OSError as error:
            raise unreadable(path, error) from error
    return digest.hexdigest()


def unreadable(path: Path, error: Exception) -> FileError:
    """Return the error for a failed read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return FileError("does not exist", where=path, expected="a file", fix="check the path for typos")
    if isinstance(error, IsADirectoryError):
        return FileError("is a folder", where=path, expected="a file", fix="pass the path of the file itself")
    if isinstance(error, MemoryError):
        return FileError("is larger than the free memory", where=path, fix="check that this is the intended file")
    reason = error.strerror if isinstance(error, OSError) else None
    return FileError(f"cannot be read ({reason or error})", where=path, fix="check its permissions")


def _too_large(path: Path, actual: str, most: int) -> FileError:
    return FileError(
        "is too large",
        where=path,
        found=actual,
        expected=f"at most {most:,} bytes",
        fix="check that this is the intended file",
    )
