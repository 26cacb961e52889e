"""`examples/retrieval.py`: three libraries search one bundle, by meaning and by tone."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "retrieval.py"


@pytest.mark.extended
@pytest.mark.filterwarnings("default")  # few rows are trained on
def test_libraries_find_what_the_adapter_takes_for_alike(
    minilm_archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(EXAMPLE))["main"](minilm_archive)
    lines = capsys.readouterr().out.splitlines()
    at = [number for number, line in enumerate(lines) if line.endswith("finds")]
    for start, document in zip(at, ("the soup was dreadful", "the comet was wonderful"), strict=True):
        found = lines[start + 1 : start + 4]
        assert [line.split()[0] for line in found] == ["sentence-transformers", "LangChain", "LlamaIndex"]
        assert all(document in line for line in found)
