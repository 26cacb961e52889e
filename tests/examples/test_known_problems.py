"""The known problems are still problems of the other library, and have an answer here."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "known_problems"
PAGE = (ROOT / "docs" / "explanation" / "other-tools.md").read_text("utf-8")

pytestmark = [pytest.mark.extended, pytest.mark.filterwarnings("ignore")]


def program() -> dict[str, Any]:
    sys.path.insert(0, str(EXAMPLE))
    try:
        return runpy.run_path(str(EXAMPLE / "run.py"))
    finally:
        sys.path.remove(str(EXAMPLE))


RUN = program()
CASES = RUN["CASES"]


def test_the_page_has_every_case_once() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_other_library_fails_as_the_page_says(name: str, tmp_path: Path) -> None:
    outcome = CASES[name].show(tmp_path)
    assert RUN["row"](name, outcome) in PAGE, "run `python examples/known_problems/run.py --write`"
    assert outcome.silent or "refuses" in outcome.other
    distances = [float(number) for number in re.findall(r"(\d\S*e-\d+) off", outcome.ours)]
    assert all(number < 1e-4 for number in distances)
    assert distances or outcome.ours.startswith("`doctor`: ")
    assert outcome.ours != "`doctor`: works"


def test_the_command_prints_a_case(capsys: pytest.CaptureFixture[str]) -> None:
    RUN["main"]("untrained")
    printed = capsys.readouterr().out
    assert "there: PEFT answers as the base (in silence)" in printed
    assert "here:  `doctor`: untrained" in printed
