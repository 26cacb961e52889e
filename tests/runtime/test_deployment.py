"""Sessions run the verified files after any change of the folder; a reload returns the old or the new bundle."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from deployment import Service, answers, flip, flipped, next_version, same
from small_disk import small_disk
from toolchain import skip_or_fail

from adapter_export.errors import FileError, FormatError, HashError
from adapter_export.runtime import Bundle
from adapter_export.safe_io import shared_copies


@pytest.fixture(scope="module")
def second(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next_version(built, tmp_path_factory.mktemp("second") / "bundle")


@pytest.fixture(params=[False, True], ids=["private", "shared"])
def sharing(request: pytest.FixtureRequest, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy files of any size privately, or share their copies as those of large files."""
    if request.param:
        monkeypatch.setattr(shared_copies, "LEAST_BYTES", 1)


def _written_over(folder: Path, other: Path) -> None:
    """Overwrite the files in place, as `cp new/* bundle/` does."""
    for path in other.rglob("*"):
        if path.is_file():
            with (folder / path.relative_to(other)).open("r+b") as file:
                file.truncate(0)
                file.write(path.read_bytes())


def _emptied(folder: Path, other: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


def _exchanged(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def _removed(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.usefixtures("sharing")
@pytest.mark.parametrize("change", [_written_over, _emptied, _exchanged, _removed])
def test_changes_of_the_folder_do_not_affect_open_sessions(
    copy: Path, bundle: Bundle, second: Path, change: Callable[[Path, Path], None]
) -> None:
    """Open sessions and later reads, of a bank, adapters on demand and another session, are unaffected."""
    expected = answers(bundle.session(threads=1))
    opened = Bundle.open(copy)
    live, on_demand = opened.session(threads=1), opened.session(threads=1, on_demand=True)
    first = answers(live)
    change(copy, second)
    for session in (live, on_demand, opened.session(threads=1)):
        assert same(answers(session), expected)
    assert same(first, expected)


@pytest.mark.parametrize("name", ["model.onnx", "adapters/wide.onnx_adapter"])
def test_uncopied_bundles_detect_changed_files(copy: Path, temporary: Path, name: str) -> None:
    bundle = Bundle.open(copy, copy=False)
    assert list(temporary.iterdir()) == []
    flip(copy / name, 8 * 999)
    with pytest.raises(HashError, match=Path(name).name):
        bundle.session()


class TestSharedCopy:
    @pytest.fixture(autouse=True)
    def large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shared_copies, "LEAST_BYTES", 1)

    def test_bundles_and_their_processes_map_one_file(self, copy: Path, temporary: Path) -> None:
        bundles = [Bundle.open(copy), Bundle.open(copy)]
        first, second = ((bundle.home / "base.bin").stat() for bundle in bundles)
        assert first.st_ino == second.st_ino
        assert same(answers(bundles[0].session(threads=1)), answers(bundles[1].session(threads=1)))

    @pytest.mark.parametrize("name", ["base.bin", "model.onnx", "adapters/wide.onnx_adapter"])
    def test_a_damaged_file_is_refused_although_its_copy_is_whole(self, copy: Path, temporary: Path, name: str) -> None:
        Bundle.open(copy)
        flip(copy / name, 8 * 99)
        with pytest.raises(HashError, match=Path(name).name):
            Bundle.open(copy)

    def test_no_copy_is_shared_without_a_cache(
        self, copy: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ADAPTER_EXPORT_CACHE", "")
        bundle = Bundle.open(copy)
        assert (bundle.home / "base.bin").stat().st_nlink == 1
        assert list(temporary.iterdir()) == [bundle.home]


class TestPrivateCopy:
    def test_private_copy_is_removed_with_its_session(self, built: Path, temporary: Path) -> None:
        session = Bundle.open(built).session(threads=1)
        (folder,) = temporary.iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        assert answers(session)
        del session
        assert list(temporary.iterdir()) == []

    @pytest.mark.extended
    def test_private_copy_of_a_killed_process_is_removed_later(self, built: Path, temporary: Path) -> None:
        used = Bundle.open(built)  # a lock keeps the next one from it
        code = f"""
import os, signal
from adapter_export.runtime import Bundle
bundle = Bundle.open({str(built)!r})
os.kill(os.getpid(), signal.SIGKILL)
"""
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(temporary)}, check=False)
        assert done.returncode == -signal.SIGKILL
        left = set(temporary.glob("adapter-export-*"))
        assert len(left) == 2
        again = Bundle.open(built)
        assert len(left & set(temporary.iterdir())) == 1
        assert answers(used.session())
        assert answers(again.session())

    def test_private_copy_removed_by_another_process_is_made_again(
        self, built: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, real = list[str](), tempfile.mkdtemp

        def make(*given: object, **settings: str) -> str:
            made.append(real(*given, **settings))  # type: ignore[call-overload]
            if len(made) == 1:
                Path(made[0]).rmdir()  # before it could be locked
            return made[-1]

        monkeypatch.setattr(tempfile, "mkdtemp", make)
        opened = Bundle.open(built)
        assert [str(path) for path in temporary.iterdir()] == made[1:]
        assert answers(opened.session(threads=1))

    def test_open_names_missing_space_for_the_private_copy(self, built: Path, temporary: Path) -> None:
        with small_disk(1_000), pytest.raises(FileError, match=r"no room for a private copy.*TMPDIR.*copy=False"):
            Bundle.open(built)
        assert list(temporary.iterdir()) == []
        temporary.rmdir()
        with pytest.raises(FileError, match=r"no room for a private copy.*TMPDIR"):
            Bundle.open(built)
        assert answers(Bundle.open(built, copy=False).session())


@pytest.mark.usefixtures("sharing")
class TestReload:
    def test_reload_of_an_unchanged_bundle_returns_the_same_object(self, copy: Path) -> None:
        bundle = Bundle.open(copy)
        assert bundle.reload() is bundle

    def test_reload_returns_the_new_bundle_and_keeps_open_sessions(
        self, copy: Path, bundle: Bundle, second: Path
    ) -> None:
        opened = Bundle.open(copy)
        session = opened.session(threads=1)
        _exchanged(copy, second)
        new = opened.reload()
        assert same(answers(session), answers(bundle.session(threads=1)))
        assert same(answers(new.session(threads=1)), answers(Bundle.open(second).session(threads=1)))
        assert not same(answers(session), answers(new.session(threads=1)))

    @pytest.mark.parametrize("half", ["base.bin", "manifest.json"])
    def test_half_replaced_bundles_are_refused(self, copy: Path, bundle: Bundle, second: Path, half: str) -> None:
        opened = Bundle.open(copy)
        shutil.copy(second / half, copy / half)
        with pytest.raises(FormatError):
            Bundle.open(copy)
        if half == "manifest.json":
            with pytest.raises(FormatError):
                opened.reload()
        assert same(answers(opened.session(threads=1)), answers(bundle.session(threads=1)))

    def test_open_retries_a_bundle_exchanged_midway(
        self, copy: Path, second: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import adapter_export.runtime.bundle as module

        verify = module.verify_files

        def exchanged_before(*arguments: object, **named: object) -> None:
            monkeypatch.setattr(module, "verify_files", verify)
            _exchanged(copy, second)
            verify(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "verify_files", exchanged_before)
        assert Bundle.open(copy).manifest == Bundle.open(second).manifest

    def test_open_names_a_file_that_disappears_midway(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A replaced folder is retried instead of raising an error of the operating system."""
        import adapter_export.format.manifest_json as module

        look = module._check_inside

        def gone_behind(path: Path, folder: Path) -> None:
            look(path, folder)
            if path.name == "base.bin":
                path.unlink()

        monkeypatch.setattr(module, "_check_inside", gone_behind)
        with pytest.raises(FileError, match="does not exist"):
            Bundle.open(copy)

    def test_reloads_under_load_give_no_wrong_answer(self, built: Path, second: Path, tmp_path: Path) -> None:
        """`make trust` runs a million requests."""
        counts = Service(tmp_path / "bundle", (built, second)).run(threads=4, requests=2_000, reloads=2)
        assert counts["right"] >= 2_000
        assert counts["wrong"] == 0
        assert counts["reloaded"] > 1
        assert counts["switched"] > 10


@pytest.mark.usefixtures("sharing")
def test_a_flipped_bit_is_an_error_or_changes_nothing(copy: Path) -> None:
    """`make trust` runs ten thousand."""
    outcomes = flipped(copy, 30)
    assert outcomes.keys() == {"refused", "the same answers"}
    assert outcomes["refused"] > 10


_FORKS = """
import os, sys, threading, time
import numpy as np
from deployment import INPUTS, answers, same
from adapter_export.errors import UsageError
from adapter_export.runtime import Bundle
bundle = Bundle.open(sys.argv[1])
session = bundle.session(threads=2, on_demand=True)
expected, done = answers(session), threading.Event()

def work():
    while not done.is_set():
        answers(session)

def refused(call):
    try:
        call()
    except UsageError:
        return True

def in_child():
    calls = [lambda: session.run(INPUTS, "wide"), lambda: session.run(INPUTS, adapters=["wide"] * 3),
             lambda: session.run_many([]), lambda: session.unload("wide"), lambda: session.classify(INPUTS, "wide")]
    return all(map(refused, calls)) and same(answers(bundle.session(threads=2)), expected)

worker = threading.Thread(target=work)
worker.start()
for _ in range(2):
    time.sleep(0.01)
    child = os.fork()
    if not child:
        os._exit(0 if in_child() else 3)
    assert os.waitpid(child, 0)[1] == 0
done.set()
worker.join()
assert same(answers(session), expected)
"""


@pytest.mark.extended
def test_a_fork_refuses_the_session_and_opens_its_own(built: Path) -> None:
    """Fork while threads run; children share the copy of the bundle opened before."""
    if not hasattr(os, "fork"):
        skip_or_fail("this system has no fork")
    path = os.pathsep.join(filter(None, [*sys.path]))
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKS, str(built)],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
