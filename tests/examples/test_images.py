"""`examples/images.py`, with the smallest sizes: it trains, builds, checks and answers."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "images.py"


@pytest.mark.filterwarnings("default")
def test_the_example_answers_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(EXAMPLE), "--folder", str(tmp_path / "made"), "--epochs", "1", "--rows", "60"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    answers = [line for line in said.splitlines() if line.startswith("data/test/")]
    assert answers
    assert {line.split(": ")[1][0] for line in answers} <= set("56789")
    assert "accuracy" in said
