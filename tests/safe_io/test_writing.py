"""Writing: whole or not at all, and nothing that was there is lost."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
import tracemalloc
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from power import killed_at, lose_power
from toolchain import skip_or_fail

from adapter_export.errors import BusyError, FileError, OutputExistsError, WriteError
from adapter_export.safe_io import output
from adapter_export.safe_io.output import Output, hold_lock
from adapter_export.safe_io.regular_files import read_bytes, sha256_of, sha256_of_part

FULL_DISK = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL_DISK.exists(), reason="this system has no /dev/full")
New = Callable[..., AbstractContextManager[Path]]


def fill(temporary: Path, text: str) -> None:
    (temporary / "part" if temporary.is_dir() else temporary).write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_and(then: Callable[[], object], new: New, target: Path, *, force: bool = False) -> None:
    with new(target, force=force) as temporary:
        fill(temporary, "half")
        then()


def fail(error: type[BaseException]) -> None:
    raise error


def content(path: Path) -> str:
    return (path / "part" if path.is_dir() else path).read_text()


@pytest.fixture(params=["file", "folder"])
def new(request: pytest.FixtureRequest) -> New:
    return lambda target, force=False: getattr(Output(target, force), request.param)()


def test_takes_its_place_at_the_end(new: New, tmp_path: Path) -> None:
    target = tmp_path / "made/on/the/way/out"
    with new(target) as temporary:
        fill(temporary, "new")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert content(target) == "new"
    assert names(target.parent) == ["out"]


def test_a_folder_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    with Output(tmp_path / "out").folder():
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_existing_output_is_not_overwritten(new: New, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(OutputExistsError, match="force=True"), new(target):
        pytest.fail("the block must not run")
    assert content(target) == "old"
    assert names(tmp_path) == ["out"]


def test_output_that_appears_meanwhile_is_not_overwritten(new: New, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputExistsError):
        write_and(lambda: target.write_text("someone else's"), new, target)
    assert content(target) == "someone else's"
    assert names(tmp_path) == ["out"]


def test_output_written_by_the_previous_lock_holder_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = output._acquire

    def acquired(lock: Path, named: Path) -> int:
        (tmp_path / "new").write_text("of another")  # whose lock was released a moment ago
        return taken(lock, named)

    monkeypatch.setattr(output, "_acquire", acquired)
    with pytest.raises(OutputExistsError), Output(tmp_path / "new").file():
        pytest.fail("was made again")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("old", ["a file", "a folder", "a link to a file", "a link to a folder", "a broken link"])
def test_force_replaces_at_the_end(new: New, tmp_path: Path, old: str) -> None:
    target, other = tmp_path / "out", tmp_path / "other"
    if old.endswith("file"):
        other.write_text("old")
    elif old.endswith("folder"):
        other.mkdir()
        fill(other, "old")
    if "link" in old:
        target.symlink_to(other)
    else:
        other.rename(target)
    before = sorted({*names(tmp_path), "out"})
    with new(target, force=True) as temporary:
        fill(temporary, "new")
        assert os.path.lexists(target)
    assert content(target) == "new"
    assert not target.is_symlink()
    assert names(tmp_path) == before
    assert not other.exists() or content(other) == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("force", [False, True])
def test_failures_while_writing_change_nothing(
    new: New, tmp_path: Path, force: bool, error: type[BaseException]
) -> None:
    target = tmp_path / "made/out"
    if force:
        target.mkdir(parents=True)
        fill(target, "old")
    with pytest.raises(error):
        write_and(lambda: fail(error), new, target, force=force)
    assert names(tmp_path) == (["made"] if force else [])
    assert not force or content(target) == "old"


@needs_full_disk
def test_a_full_disk_is_named(new: New, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(WriteError, match="No space left on device") as caught:
        write_and(lambda: FULL_DISK.write_bytes(b"rest"), new, target, force=True)
    assert caught.value.where == str(target)
    assert content(target) == "old"
    assert names(tmp_path) == ["out"]


def test_a_place_that_cannot_be_written_is_named(new: New, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WriteError), new(tmp_path / "file/out") as temporary:
        fill(temporary, "new")
    assert content(tmp_path / "file") == "not a folder"


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_force_does_not_replace_the_folder_that_you_work_in(
    new: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FileError, match="is the current folder"), new(Path(name), force=True):
        pytest.fail("the block must not run")


def test_sha256_of_a_file_matches_hashlib(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("read", [read_bytes, sha256_of])
def test_unreadable_files_are_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        read(tmp_path / "nothing")
    with pytest.raises(FileError, match="is a folder"):
        read(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FileError, match="cannot be read"):
        read(tmp_path / "loop")


@pytest.mark.parametrize("read", [read_bytes, sha256_of, lambda path: sha256_of_part(path, 0, 9)])
def test_endless_files_are_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, found in (("fifo", "a FIFO"), ("zero", "a device or a socket")):
        with pytest.raises(FileError, match=f"is not a regular file; found {found}"):
            read(tmp_path / name)


def test_reading_allocates_only_the_actual_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 1000)
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "file", 2**36) == b"abc" * 1000
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert read_bytes(Path("/proc/self/status")), "its size is told to be 0"
    with pytest.raises(FileError, match="is too large"):
        read_bytes(Path("/proc/self/status"), 10)


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("exchanged", [True, False], ids=["exchanged", "renamed"])
def test_a_kill_or_a_power_failure_at_any_step_loses_nothing(
    new: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    if not hasattr(os, "fork"):
        skip_or_fail("this system has no fork")
    if not exchanged:
        monkeypatch.setattr(output, "exchange", lambda *_: False)
    target = tmp_path / "out"

    def write(text: str) -> None:
        with new(target, force=True) as temporary:
            fill(temporary, text)

    write("old")
    kept = {path.stat().st_ino for path in (target, *target.rglob("*"))}
    for step in itertools.count():
        finished, synced = killed_at(step, lambda: write("new"))
        lose_power(tmp_path, kept | synced)
        left = sorted(set(names(tmp_path)) - {"out", ".out.adapter-export.lock"})
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with hold_lock(target):
                found = content(target)
        assert found in {"old", "new"}
        assert sorted(Path(str(one.message).split(": ")[0]).name for one in said) == left
        assert names(tmp_path) == ["out"]
        if finished:
            assert found == "new"
            assert step > 4
            break
        write("old")
        kept = {path.stat().st_ino for path in (target, *target.rglob("*"))}


def test_two_writers_exclude_each_other(new: New, tmp_path: Path) -> None:
    target = tmp_path / "out"

    def other() -> None:
        with new(target, force=True) as temporary:
            fill(temporary, "other")

    with new(target) as temporary, ThreadPoolExecutor(1) as threads:
        fill(temporary, "first")
        with pytest.raises(BusyError, match=f"process {os.getpid()} on ") as caught:
            threads.submit(other).result()
        assert caught.value.where == str(target)
    assert content(target) == "first"
    other()
    assert content(target) == "other"
    assert names(tmp_path) == ["out"]


def test_a_writer_waits_for_a_recovery_that_takes_a_moment(new: New, tmp_path: Path) -> None:
    def write() -> None:
        with new(tmp_path / "out") as temporary:
            fill(temporary, "new")

    with ThreadPoolExecutor(1) as threads:
        with hold_lock(tmp_path / "out"):
            waiting = threads.submit(write)
            time.sleep(0.2)
            assert not waiting.done()
        waiting.result()
    assert content(tmp_path / "out") == "new"


def test_the_holder_of_a_lock_may_write(new: New, tmp_path: Path) -> None:
    with hold_lock(tmp_path / "out"):
        with new(tmp_path / "out") as temporary:
            fill(temporary, "new")
        with ThreadPoolExecutor(1) as threads, pytest.raises(BusyError):
            threads.submit(lambda: fill(new(tmp_path / "out", force=True).__enter__(), "other")).result()
    assert names(tmp_path) == ["out"]


def test_files_of_users_are_not_cleaned_up(new: New, tmp_path: Path) -> None:
    for name in (".out.old", ".out.12345678.tmp2", "out.12345678.tmp", ".output.12345678.tmp"):
        (tmp_path / name).write_text("the user's")
    with new(tmp_path / "out") as temporary:
        fill(temporary, "new")
    assert len(names(tmp_path)) == 5
