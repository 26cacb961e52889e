"""Two fine-tuned models become adapters of one bundle, which is smaller than one of them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetuned_to_adapters.py"


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_two_models_become_adapters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    runpy.run_path(str(EXAMPLE))["main"](tmp_path)
    printed = capsys.readouterr().out
    assert "has rank 8, and is imported without loss: True" in printed
    copies, adapters = re.findall(r"two models: ([\d.]+) MB; their adapters: ([\d.]+) MB", printed)[0]
    assert float(adapters) < 0.06 * float(copies)
