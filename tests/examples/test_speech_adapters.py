"""The example of speech compares its texts with PEFT."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "speech_adapters.py"


@pytest.mark.extended
def test_texts_of_two_adapters_in_one_batch_are_those_of_peft(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE))["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["clinic", "court", "base"]
    assert all(line.endswith("as in PEFT") for line in lines)
    assert len({line.partition(":")[2] for line in lines}) == 3
