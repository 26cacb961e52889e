"""Output of the commands, and its rate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adapter_export.cli.reporter import TerminalReporter
from adapter_export.cli.terminal import emit_json, report, show, warn
from adapter_export.tables import Table, bar, duration, size
from adapter_export.words import argument


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (91_400_000, "91.4 MB"), (4e12, "4000.0 GB")]
)
def test_sizes_are_formatted_for_reading(count: int, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (125.0, "2:05"), (3725, "62:05")]
)
def test_durations_are_formatted_for_reading(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("probability", "length"), [(0.0, 0), (1.0, 24), (0.5, 12), (0.01, 1)])
def test_a_bar_is_as_long_as_its_probability(probability: float, length: int) -> None:
    assert len(bar(probability)) == length


def test_json_is_one_document_with_plain_values(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"path": Path("a/b"), "number": np.float32(0.5), "count": np.int64(3), "names": ("ä", "b")})
    assert json.loads(capsys.readouterr().out) == {"path": "a/b", "number": 0.5, "count": 3, "names": ["ä", "b"]}


def test_json_never_holds_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        emit_json({"loss": float("nan")})


def test_markup_in_cells_is_shown_literally(capsys: pytest.CaptureFixture[str]) -> None:
    show("[i]a title[/i]", Table(("text",), [("[bold]not markup[/bold]",)], "[b]nor here[/b]"))
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[i]a title[/i]", "[bold]not markup[/bold]", "[b]nor here[/b]"))


def test_text_of_others_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """In labels, names and configs: titles of windows, colours, signs that turn the direction of text."""
    foreign = "\x1b]0;owned\x07 \x9b31m \u202elived"
    show(f"of {foreign}", Table((foreign,), [(foreign,)], foreign))
    emit_json({"label": foreign})
    report(foreign)
    warn(foreign)
    with TerminalReporter(foreign) as reporter:
        reporter.step(foreign, 1, 1)
        reporter.step(foreign)
    found = capsys.readouterr()
    for text, times in ((found.out, 5), (found.err, 5)):
        assert not set(text) & set("\x1b\x07\x9b\u202e")
        assert text.count("owned") == times
    assert json.loads(found.out[found.out.index("{") :])["label"] == foreign


def test_a_bar_outside_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalReporter("training") as reporter:
        for done in range(1000):
            reporter.step("loss 0.1", done + 1, 1000)
    found = capsys.readouterr()
    assert found.out == ""
    (line,) = found.err.splitlines()
    assert line.startswith("training  1000/1000  in ")
    assert line.endswith("loss 0.1")


def test_steps_outside_a_terminal_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalReporter("build") as reporter:
        reporter.step("first")
        reporter.step("second")
    found = capsys.readouterr()
    assert found.out == ""
    assert [line.split("  ")[0] for line in found.err.splitlines()] == ["• first", "• second"]


def test_notes_are_printed_once_as_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalReporter("build") as reporter:
        for _ in range(2):
            reporter.warn("no bank: give " + argument("variants"))
    assert capsys.readouterr().err == "warning: no bank: give `--variants`.\n"
    assert reporter.notes == ["no bank: give `--variants`"]


def test_a_step_that_fails_is_not_shown_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = TerminalReporter("build")
    reporter.step("first")
    reporter.step("second")
    reporter.__exit__(KeyError, KeyError(), None)
    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()] == ["• first"]
