"""The benchmark of chat streams runs at a tiny size; no time is tested."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.extended
def test_every_way_writes_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sizes = {"width": 32, "layers": 1, "streams": 2, "words": 300, "rounds": 1}
    monkeypatch.setattr(sys, "argv", ["streams.py", *(f"--{name}={size}" for name, size in sizes.items())])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(BENCHMARKS / "streams.py"), run_name="__main__")
    rows = [line.split(" | ") for line in printed.getvalue().splitlines() if line.startswith("| ")]
    names = [row[0].removeprefix("| ") for row in rows[2:]]
    assert names == ["one after the other", "2 at a time", "2 at a time, with a JSON schema"]
    assert all(float(row[1].partition(" ")[0].replace(",", "")) > 1 for row in rows[2:])
