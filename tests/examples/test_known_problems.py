"""The known problems are still problems of the other library, and have an answer here, as the page says."""

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
ROWS = {
    cells[0].strip("` "): cells[1:]
    for line in PAGE.splitlines()
    if line.startswith("| `") and len(cells := line.strip("| ").split(" | ")) == 4
}

pytestmark = [pytest.mark.extended, pytest.mark.filterwarnings("ignore")]


def cases() -> dict[str, Any]:
    sys.path.insert(0, str(EXAMPLE))
    try:
        found: dict[str, Any] = runpy.run_path(str(EXAMPLE / "cases.py"))["CASES"]
    finally:
        sys.path.remove(str(EXAMPLE))
    return found


CASES = cases()


def test_the_page_has_every_case_with_its_thread() -> None:
    assert list(ROWS) == list(CASES)
    for name, case in CASES.items():
        assert f"(https://github.com/{case.thread})" in ROWS[name][0]


@pytest.mark.parametrize("name", CASES)
def test_the_other_library_fails_as_the_page_says(name: str, tmp_path: Path) -> None:
    outcome = CASES[name].show(tmp_path)
    _, there, here = ROWS[name]
    assert outcome.silent == ("refuses" not in there)
    if outcome.silent:
        assert ("warns" in there) == outcome.warned
        assert ("silent" in there) != outcome.warned
    else:
        assert "refuses" in outcome.other
    if "answers as the base" in there:
        assert outcome.other == "PEFT answers as the base"
    if here.startswith("`"):
        assert outcome.ours == f"`doctor`: {here.strip('`')}"
    else:
        distances = [float(number) for number in re.findall(r"(\d\S*e-\d+) off", outcome.ours)]
        assert distances
        assert all(number < 1e-4 for number in distances)


def test_the_command_prints_a_case(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE / "run.py"))["main"]("untrained")
    printed = capsys.readouterr().out
    assert "there: PEFT answers as the base (in silence)" in printed
    assert "here:  `doctor`: untrained" in printed
