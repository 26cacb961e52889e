"""Every reader of foreign files, fed with some changed ones; `make fuzz` does it for an hour."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import fuzz
from readers import HEAVY, LIGHT, Reader


@pytest.mark.extended
def test_readers_survive_the_first_mutations(tmp_path: Path) -> None:
    """The same mutations each time: a failure means another reader, not another draw."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(Path(__file__).parent / "fuzz.py"), "--executions", "15", "--json", str(figures)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert tuple(found) == (*LIGHT, *HEAVY)
    assert all(one["executions"] == 15 for one in found.values())


def _mistake(_: Path) -> None:
    raise KeyError("a mistake of ours")


def _slow(_: Path) -> None:
    sum(range(10_000_000))


@pytest.mark.parametrize(("read", "words"), [(_mistake, "KeyError at test_fuzz.py"), (_slow, "seconds")])
def test_fuzzing_finds_wrong_errors_and_slow_readers(
    read: Callable[[Path], None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "MOST_SECONDS", 0.02)
    found = fuzz.outcome(Reader(read, {}, {}), tmp_path)
    assert found is not None
    assert words in found
