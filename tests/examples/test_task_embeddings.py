"""An embedder whose rows choose their task: one call for texts of all tasks gives what a call for each gives."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "task_embeddings.py"


def test_rows_choose_their_task(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE))["main"]()
    said = capsys.readouterr().out
    shares = {
        name: [int(one) for one in re.findall(r"(\d+)%", rest)]
        for name, rest in re.findall(r"^(\w+) +(.*%)$", said, re.M)
    }
    assert list(shares) == ["retrieval", "classification", "clustering", "separation", "matching"]
    for at, found in enumerate(shares.values()):
        assert found[at] == max(found) > 90
    apart = re.findall(r"returns the same, (\S+) apart", said)
    assert len(apart) == 5
    assert all(float(one) < 1e-5 for one in apart)
