"""The way from a table with faulty rows to two adapters on a server, as the tutorial shows it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.extended
def test_a_table_with_faults_becomes_answers(
    text_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = runpy.run_path(str(EXAMPLES / "own_table.py"))
    sys.modules.pop("demo", None)
    example["main"](tmp_path / "own", text_folder / "hf")
    said = capfd.readouterr()
    assert "questions.csv: 2 faults" in said.err
    assert "2 rows have no text or no label; found lines 7, 8" in said.err
    assert "was read as Windows-1252" in said.err
    assert "read with `;` between cells" in said.err
    order = ["exit code 3", "passed (golden vectors only)", "Five commands and", "/answer", "/answer", "HTTP 400"]
    places = [said.out.index(order[0])]
    for words in order[1:]:
        places.append(said.out.index(words, places[-1] + 1))
    assert "found adapters that answer: `questions`, `messages`" in said.out
