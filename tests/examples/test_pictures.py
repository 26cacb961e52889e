"""`examples/pictures.py`, with the smallest sizes: it trains, builds, checks and answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "pictures.py"


def test_the_example_answers_pictures(tmp_path: Path) -> None:
    words = [sys.executable, str(EXAMPLE), "--folder", str(tmp_path / "made"), "--epochs", "1", "--rows", "60"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    answers = [line for line in done.stdout.splitlines() if line.startswith("data/test/")]
    assert answers
    assert {line.split(": ")[1][0] for line in answers} <= set("56789")
    assert "accuracy" in done.stdout
