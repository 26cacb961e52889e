"""A streaming speech encoder with adapters, fed chunk by chunk, hears what torch hears in the whole clip."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "streaming_speech.py"


def test_chunks_are_the_whole_clip(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE))["main"]()
    said = capsys.readouterr().out
    compared = re.findall(
        r"(\w+): 6 chunks in ONNX Runtime, the whole clip in torch: (\S+) apart, of vectors up to (\S+)", said
    )
    assert [name for name, *_ in compared] == ["base", "far", "noisy"]
    assert all(float(apart) < 1e-5 < 1 < float(largest) for _, apart, largest in compared)
    falls = re.findall(r"falls from (\S+) to (\S+)", said)
    assert all(float(last) < float(first) / 4 for first, last in falls)
    assert "these are bit-identical" in said
