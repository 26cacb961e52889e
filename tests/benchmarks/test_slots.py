from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tiny_onnx import save_tiny

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "slots.py"


def test_it_prints_a_line_for_each_variant_and_shape(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(save_tiny(tmp_path)), "--rounds", "1", "--bottleneck", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert len(rows) == 4 * 4
    assert all(float(row.split()[-1]) > 0 for row in rows)
    assert "open a second session" in done.stdout
    assert done.stderr == ""
