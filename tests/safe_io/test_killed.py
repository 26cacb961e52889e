"""Temporary files of killed commands; any next command removes them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from peft_bases import peft_base
from peft_folders import adapter_folder
from tiny_onnx import random_adapter, save_tiny, tiny_bundle

import adapter_export as ae
from adapter_export.errors import AbandonedFileWarning
from adapter_export.format.adapter_files import write_adapter
from adapter_export.graph.kinds import houlsby
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.private_folder import PrivateFolder
from adapter_export.safe_io.temporary import remove_abandoned, temporary_folder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no locks that end with a process")


def _kill_in(block: str) -> None:
    """Run a block of Python in another process that is killed at its end."""
    code = f"import os, signal\nfrom pathlib import Path\n{block}os.kill(os.getpid(), signal.SIGKILL)\n"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_temporary_folder_is_private_and_ends_with_its_block(temporary: Path) -> None:
    with temporary_folder() as folder:
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "part").write_text("half")
    assert list(temporary.iterdir()) == []


def test_folders_in_use_stay(temporary: Path) -> None:
    private = PrivateFolder()
    remove_abandoned()
    assert private.path.is_dir()


def test_finished_outputs_leave_no_note(temporary: Path, tmp_path: Path) -> None:
    with Output(tmp_path / "out").file() as path:
        path.write_text("new")
        assert len(list(temporary.iterdir())) == 1
    assert list(temporary.iterdir()) == []


def test_an_output_needs_no_folder_for_temporary_files(temporary: Path, tmp_path: Path) -> None:
    temporary.rmdir()
    with Output(tmp_path / "out").file() as path:
        path.write_text("new")
    assert (tmp_path / "out").read_text() == "new"


@pytest.mark.extended
def test_the_note_of_a_killed_writer_leads_to_its_files(temporary: Path, tmp_path: Path) -> None:
    target = tmp_path / "far/out"
    _kill_in(
        "from adapter_export.safe_io.output import Output\n"
        f"output = Output(Path({str(target)!r})).folder()\n"
        "(output.__enter__() / 'part').write_text('half')\n"
    )
    assert len(list(target.parent.iterdir())) == 2
    with pytest.warns(AbandonedFileWarning, match="the process writing it was killed"):
        remove_abandoned()
    assert list(target.parent.iterdir()) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.extended
def test_a_note_of_a_folder_that_is_gone_is_dropped(temporary: Path, tmp_path: Path) -> None:
    target = tmp_path / "far/out"
    _kill_in(
        "from adapter_export.safe_io.output import Output\n"
        f"output = Output(Path({str(target)!r})).folder()\n"
        "output.__enter__()\n"
    )
    shutil.rmtree(target.parent)
    remove_abandoned()
    assert not target.parent.exists()
    assert list(temporary.iterdir()) == []


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Commands by name, with paths relative to a folder that has their inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    base = open_onnx(save_tiny(folder))
    for name in ("a", "b"):
        write_adapter(random_adapter(name, houlsby(), base, bottleneck=4), folder / name)
    shutil.copytree(tiny_bundle(tmp_path_factory), folder / "bundle")
    bert = shutil.copytree(peft_base(tmp_path_factory, "bert"), folder / "bert") / "model.onnx"
    shutil.copytree(adapter_folder("bert_ia3"), folder / "saved")
    ae.import_peft(folder / "saved", bert, folder / "imported")
    return {
        "folder": [str(folder)],
        "build": ["build", "tiny.onnx", "--adapters", "a,b", "-o", "out"],
        "export": ["export", "imported", "--to", "peft", "--base", "bert/model.onnx", "-o", "out"],
        "import": ["import", "peft", "saved", "--base", "bert/model.onnx", "-o", "out"],
        "remove": ["remove", "bundle", "wide"],
        "verify": ["verify", "bundle"],
    }


@pytest.mark.extended
@pytest.mark.parametrize("seconds", [0.0, 0.3])
@pytest.mark.parametrize("name", ["build", "export", "import", "remove", "verify"])
def test_a_killed_command_leaves_nothing_to_the_next(
    commands: dict[str, list[str]], temporary: Path, tmp_path: Path, name: str, seconds: float
) -> None:
    """The process is killed some time after its first temporary file."""
    place = tmp_path / "place"
    shutil.copytree(commands["folder"][0], place)
    before = {path.name for path in place.iterdir()}
    program = [sys.executable, "-m", "adapter_export"]
    process = subprocess.Popen([*program, *commands[name]], cwd=place, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(temporary.glob("adapter-export-*")):
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    process.wait()
    subprocess.run([*program, "inspect", "bundle"], cwd=place, check=True, stdout=subprocess.DEVNULL)
    assert list(temporary.glob("adapter-export-*")) == []
    assert {path.name for path in place.iterdir()} - before <= {"out"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", AbandonedFileWarning)
        remove_abandoned()
