"""A trial in a child process: any failure there becomes a named error here."""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from adapter_export.errors import BaseModelError, NoSitesError
from adapter_export.safe_io.child import Limits, try_out

LIMITS = Limits(seconds=20.0, bytes=2**30)


def crash() -> None:
    ctypes.string_at(0)


def grow() -> None:
    np.ones(2**28)  # 2 GB


def sleep() -> None:
    time.sleep(60)


def leave() -> None:
    sys.exit(9)


def refuse(path: str) -> None:
    raise NoSitesError("has none", where=path, found="\x1b[31m", fix="look")


def _try(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch, limits: Limits = LIMITS) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    try_out(f"test_child:{name}", *arguments, limits=limits, refusal=lambda reason: BaseModelError(reason))


@pytest.mark.parametrize(
    ("name", "words"),
    [("crash", r"a crash \(signal 11\)"), ("grow", "more than 1,074 MB of memory"), ("leave", "status 9")],
)
def test_cause_of_a_dead_child_process_is_named(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BaseModelError, match=words):
        _try(name, monkeypatch=monkeypatch)


def test_a_child_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BaseModelError, match="timeout after 1 seconds"):
        _try("sleep", monkeypatch=monkeypatch, limits=Limits(1.0, 2**30))


def test_an_error_of_the_child_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoSitesError) as caught:
        _try("refuse", "some\ttext", monkeypatch=monkeypatch)
    assert caught.value.facts() == {
        **{"error": "NoSitesError", "what": "has none", "where": "some\ttext", "found": "\\x1b[31m", "fix": "look"}
    }


def test_no_module_comes_from_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder that was downloaded may hold a `json.py`."""
    (tmp_path / "json.py").write_text("raise SystemExit(7)\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoSitesError):
        _try("refuse", "some text", monkeypatch=monkeypatch)
