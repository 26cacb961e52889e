"""Shared copies of large files: hashed once, never served after a change, and removed when unused."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapter_export.errors import FileError
from adapter_export.safe_io import regular_files, shared_copies
from adapter_export.safe_io.private_folder import PrivateFolder
from adapter_export.safe_io.shared_copies import copy_shared, remove_unused
from adapter_export.safe_io.temporary import remove_abandoned

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies are shared on Linux only")

CONTENTS = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENTS).hexdigest()


@pytest.fixture(autouse=True)
def _shared(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Share files of any size."""
    monkeypatch.setattr(shared_copies, "LEAST_BYTES", 1)
    monkeypatch.setattr(shared_copies, "_in_memory", lambda _: False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "base.bin"
    path.write_bytes(CONTENTS)
    return path


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the times of files that were written just now: the clock of this file system is fine enough."""
    monkeypatch.setattr(shared_copies, "_QUIET_SECONDS", -1.0)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, in order."""
    names: list[str] = []
    for module, name in ((shared_copies, "copy_open"), (shared_copies, "sha256_of_open")):
        call = getattr(module, name)

        def counted(file: object, path: Path, *more: object, call: Callable[..., str] = call) -> str:
            names.append(path.name)
            return call(file, path, *more)

        monkeypatch.setattr(module, name, counted)
    return names


def link(file: Path, size: int = len(CONTENTS), *, rehash: bool = False) -> tuple[str, PrivateFolder]:
    private = PrivateFolder()
    return copy_shared(file, private.path / "base.bin", size, SHA256, rehash=rehash), private


def shared(temporary: Path) -> list[str]:
    return sorted(path.name for path in temporary.glob("adapter-export-shared-*/*"))


def inode(private: PrivateFolder) -> int:
    return (private.path / "base.bin").stat().st_ino


@pytest.mark.usefixtures("quiet")
def test_second_opening_reuses_the_copy_and_hash(file: Path, hashed: list[str]) -> None:
    first, second, third = link(file), link(file), link(file)
    assert hashed == ["base.bin"]
    assert inode(first[1]) == inode(second[1]) == inode(third[1]) != file.stat().st_ino
    assert (second[1].path / "base.bin").read_bytes() == CONTENTS
    second[1].remove()
    assert link(file)[0] == SHA256
    assert hashed == ["base.bin"]


@pytest.mark.usefixtures("quiet")
def test_the_copy_is_read_only_in_a_folder_of_this_user(file: Path, temporary: Path) -> None:
    _, private = link(file)
    (folder,) = temporary.glob("adapter-export-shared-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (private.path / "base.bin").stat().st_mode & 0o777 == 0o400


def test_a_file_that_changed_a_moment_ago_is_hashed_again(file: Path, hashed: list[str]) -> None:
    """A second change within the clock's resolution would leave the same times."""
    links = [link(file), link(file)]
    assert hashed == ["base.bin", "base.bin"]
    assert inode(links[0][1]) == inode(links[1][1])


@pytest.mark.usefixtures("quiet")
def test_a_changed_file_is_hashed_and_its_copy_stays(file: Path) -> None:
    _, private = link(file)
    with file.open("r+b") as opened:
        opened.write(b"W")
    os.utime(file, ns=(0, 0))
    assert link(file)[0] == hashlib.sha256(b"W" + CONTENTS[1:]).hexdigest()
    assert (private.path / "base.bin").read_bytes() == CONTENTS
    file.write_bytes(CONTENTS)
    result, again = link(file)
    assert (result, inode(again)) == (SHA256, inode(private))


@pytest.mark.usefixtures("quiet")
def test_a_touched_copy_is_made_again(file: Path, temporary: Path, hashed: list[str]) -> None:
    """Even if the writer restores size and time of modification."""
    _, private = link(file)
    (copy,) = (path for path in temporary.glob("adapter-export-shared-*/*") if path.suffix != ".json")
    times = copy.stat()
    copy.chmod(0o600)
    with copy.open("r+b") as opened:
        opened.write(b"X")
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    copy.chmod(0o400)
    result, again = link(file)
    assert result == SHA256
    assert (again.path / "base.bin").read_bytes() == CONTENTS
    assert inode(again) != inode(private)
    assert len(hashed) == 2


@pytest.mark.usefixtures("quiet")
def test_a_copy_of_an_earlier_boot_is_made_again(file: Path, temporary: Path, hashed: list[str]) -> None:
    """After a power failure, blocks may be missing from a file whose size and times are right."""
    link(file)[1].remove()
    (seal,) = temporary.glob("adapter-export-shared-*/*.json")
    seal.write_text(json.dumps({**json.loads(seal.read_text()), "boot": "earlier"}))
    link(file)
    assert len(hashed) == 2


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"boot": 1}', '{"boot": "", "copy": 3}'])
def test_a_damaged_seal_counts_for_nothing(file: Path, temporary: Path, hashed: list[str], text: str) -> None:
    link(file)[1].remove()
    (seal,) = temporary.glob("adapter-export-shared-*/*.json")
    seal.write_text(text)
    assert link(file)[0] == SHA256
    assert len(hashed) == 2


@pytest.mark.usefixtures("quiet")
def test_verification_hashes_again_without_a_copy(file: Path, hashed: list[str]) -> None:
    _, private = link(file)
    result, again = link(file, rehash=True)
    assert (result, inode(again)) == (SHA256, inode(private))
    assert len(hashed) == 2


def test_wrong_bytes_are_not_shared(file: Path, temporary: Path) -> None:
    file.write_bytes(b"others")
    assert link(file, 6)[0] == hashlib.sha256(b"others").hexdigest()
    assert not [name for name in shared(temporary) if not name.endswith(".json")]


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_folder_that_others_can_read_or_write_is_not_used(file: Path, temporary: Path, mode: int) -> None:
    folder = temporary / f"adapter-export-shared-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(mode)
    result, private = link(file)
    assert (result, shared(temporary)) == (SHA256, [])
    assert (private.path / "base.bin").read_bytes() == CONTENTS


def test_a_link_in_place_of_the_folder_is_not_followed(file: Path, temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(0o700)
    (temporary / f"adapter-export-shared-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    assert link(file)[0] == SHA256
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_copies_are_private_without_hard_links_or_locks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "not supported")

    monkeypatch.setattr(os, "link", refuse)
    result, private = link(file)
    assert (result, (private.path / "base.bin").read_bytes()) == (SHA256, CONTENTS)
    monkeypatch.setattr(fcntl, "flock", refuse)
    result, private = link(file)
    assert (result, (private.path / "base.bin").read_bytes()) == (SHA256, CONTENTS)


def test_a_process_that_stopped_while_copying_does_not_block_others(
    file: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_copies, "_WAIT_SECONDS", 0.1)
    link(file)[1].remove()
    (seal,) = temporary.glob("adapter-export-shared-*/*.json")
    with seal.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        assert link(file)[0] == SHA256
        assert time.monotonic() - began < 5


@pytest.mark.usefixtures("quiet")
def test_openings_at_the_same_time_share_one_copy(file: Path, hashed: list[str]) -> None:
    with ThreadPoolExecutor(8) as threads:
        links = list(threads.map(lambda _: link(file), range(16)))
    assert {result for result, _ in links} == {SHA256}
    assert len({inode(private) for _, private in links}) == 1
    assert hashed == ["base.bin"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        link(tmp_path / "none", 10)


class TestRemoval:
    def test_a_copy_in_use_stays(self, file: Path, temporary: Path) -> None:
        _, private = link(file)
        remove_unused(most=0)
        assert len(shared(temporary)) == 2
        private.remove()
        assert len(shared(temporary)) == 2, "the next opening is fast"
        remove_unused(most=0)
        assert shared(temporary) == []

    def test_an_unused_copy_expires(self, file: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        link(file)[1].remove()
        remove_abandoned()
        assert len(shared(temporary)) == 2
        monkeypatch.setattr(shared_copies, "UNUSED_SECONDS", -1.0)
        remove_abandoned()
        assert shared(temporary) == []

    def test_the_least_recently_used_copies_are_removed_first(self, temporary: Path, tmp_path: Path) -> None:
        names = []
        for number in range(3):
            path = tmp_path / str(number)
            path.write_bytes(bytes([number]) * 100)
            names.append(hashlib.sha256(path.read_bytes()).hexdigest())
            private = PrivateFolder()
            copy_shared(path, private.path / "base.bin", 100, names[-1])
            private.remove()
        for age, name in enumerate(names):
            (seal,) = temporary.glob(f"adapter-export-shared-*/{name}.json")
            os.utime(seal, (time.time() + age - 10,) * 2)
        remove_unused(most=200)
        assert [name for name in shared(temporary) if not name.endswith(".json")] == sorted(names[1:])

    def test_copies_in_memory_are_removed_at_once(
        self, file: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared_copies, "_in_memory", lambda _: True)
        _, private = link(file)
        assert len(shared(temporary)) == 2
        private.remove()
        assert shared(temporary) == []

    def test_file_systems_in_memory_are_recognized(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        if Path("/dev/shm").is_dir():
            assert shared_copies._in_memory(Path("/dev/shm"))
        assert not shared_copies._in_memory(Path("/proc/self"))


@pytest.mark.extended
@pytest.mark.usefixtures("quiet")
def test_a_killed_process_leaves_a_verified_copy_and_nothing_else(
    file: Path, temporary: Path, hashed: list[str]
) -> None:
    code = f"""
import os, signal
from pathlib import Path
from adapter_export.safe_io import shared_copies
from adapter_export.safe_io.private_folder import PrivateFolder
shared_copies.LEAST_BYTES, shared_copies._QUIET_SECONDS = 1, -1.0
private = PrivateFolder()
shared_copies.copy_shared(Path({str(file)!r}), private.path / "base.bin", {len(CONTENTS)}, {SHA256!r})
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(temporary)}, check=False)
    assert len(list(temporary.glob("adapter-export-private-*"))) == 1
    remove_abandoned()
    assert list(temporary.glob("adapter-export-private-*")) == []
    assert link(file)[0] == SHA256
    assert hashed == []


class TestClones:
    def test_a_clone_is_hashed(self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The file system of this test may have none, so the request is answered by a copy of other bytes."""

        def clone(copied: int, _: int, source: int) -> None:
            os.pwrite(copied, os.pread(source, 100, 0).upper(), 0)

        monkeypatch.setattr(fcntl, "ioctl", clone)
        found = regular_files.copy_hashed(file, tmp_path / "clone", 60)
        assert (tmp_path / "clone").read_bytes() == CONTENTS[:60].upper()
        assert found == hashlib.sha256(CONTENTS[:60].upper()).hexdigest()
