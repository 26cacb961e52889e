"""Every class of error, and every note of the package's source, on a terminal, as JSON, as HTML and as a warning."""

from __future__ import annotations

import ast
import json
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapter_export import errors
from adapter_export.cli import group
from adapter_export.cli.reporter import TerminalReporter
from adapter_export.cli.terminal import emit_json, report, report_failure, show
from adapter_export.errors import AdapterExportError
from adapter_export.page import document, element, items, prose, table
from adapter_export.reporting import SILENT
from adapter_export.tables import Table
from adapter_export.words import Words, argument, command, joined

PACKAGE = Path(__file__).parents[1] / "adapter_export"
HOSTILE = "<script>alert(1)</script> \x1b[31m\x07\u202e\ue000\ue002 [red]\ue001 & \"'\\"
"""Markup, a control sequence, a mark that turns text round, and characters of private use."""
TEXT = "give " + argument("force", True) + " or " + command("f()", "f") + f": {HOSTILE}"


def classes(kind: type[AdapterExportError] = AdapterExportError) -> Iterator[type[AdapterExportError]]:
    yield kind
    for other in kind.__subclasses__():
        yield from classes(other)


def made(kind: type[AdapterExportError]) -> AdapterExportError:
    """An error with hostile facts; classes with other arguments are made as for another process."""
    return errors.again(kind, dict.fromkeys(errors.FACTS, TEXT))


def written_notes() -> Iterator[str]:
    """Texts that the source passes to `warn`, with hostile values in their place."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "warn":
                yield from (hostile(text) for text in node.args[:1] if not isinstance(text, ast.Name))


def hostile(text: ast.expr) -> str:
    """Return the text of an expression with hostile values in their place."""
    if isinstance(text, ast.Constant):
        return str(text.value)
    if isinstance(text, ast.JoinedStr):
        return joined(map(hostile, text.values), "")
    if isinstance(text, ast.BinOp):
        return hostile(text.left) + hostile(text.right)
    return TEXT


NOTES = tuple(dict.fromkeys([TEXT, *written_notes()]))


def check_visible(text: str) -> None:
    """No private-use character, no control character and no mark of direction."""
    wrong = {one for one in text if not one.isprintable() and one != "\n"}
    assert not wrong, (wrong, text)


def check_html(text: str) -> None:
    check_visible(text)
    assert "<script" not in text
    assert not re.search(r"&(?!amp;|lt;|gt;|quot;|#x27;)", text)


def check_terminal(capsys: pytest.CaptureFixture[str]) -> str:
    output, error = capsys.readouterr()
    shown = output + error
    check_visible(shown)
    check_wording(shown, "shell")
    return shown


def check_wording(text: str, face: errors.Face) -> None:
    """Only the wording of one face, where the text names an argument or a call."""
    words = {"python": ("`force=True`", "`f()`"), "shell": ("`--force`", "`adapter-export f`")}
    (other,) = words.keys() - {face}
    assert not any(word in text for word in words[other]), (face, text)
    assert all(word in text for word in words[face]) or "give `" not in text, (face, text)


@pytest.mark.parametrize("kind", dict.fromkeys(classes()), ids=lambda kind: kind.__name__)
def test_errors_are_visible_text_everywhere(kind: type[AdapterExportError], capsys: pytest.CaptureFixture[str]) -> None:
    error = made(kind)
    check_visible(str(error))
    group._report(error, group._Call(json=False, debug=False))
    assert "[red]" in check_terminal(capsys)
    group._report(error, group._Call(json=True, debug=False))
    output = capsys.readouterr().out
    check_visible(output)
    facts = json.loads(output)
    assert facts["error"] == kind.__name__
    for fact in errors.FACTS:
        check_visible(facts[fact])
        check_wording(facts[fact], "shell")
    check_wording(str(error), "python")
    for page in (prose(str(error)), element("p", error.message)):
        check_html(page)
        check_wording(re.sub("</?code>", "`", page), "python")


@pytest.mark.parametrize("note", NOTES, ids=range(len(NOTES)))
def test_notes_are_visible_text_everywhere(note: str, capsys: pytest.CaptureFixture[str]) -> None:
    for text in (note, Words(note)):
        with TerminalReporter("title") as reporter:
            reporter.warn(text)
        report(text)
        report_failure(text)
        show(Table(["column"], [[text]]))
        check_terminal(capsys)
        emit_json({"notes": [text]})
        output = capsys.readouterr().out
        check_visible(output)
        check_wording(json.loads(output)["notes"][0], "shell")
        for page in (items([text]), table(Table(["column"], [[text]]))):
            check_html(page)
            check_wording(re.sub("</?code>", "`", page), "python")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            SILENT.warn(text)
        check_visible(str(caught[0].message))
        check_wording(str(caught[0].message), "python")


def test_a_page_has_no_markup_of_its_texts() -> None:
    page = document(TEXT, [prose(TEXT), items([TEXT])])
    assert "<script" not in page
    check_visible(page)


def test_internal_errors_are_visible_text(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    group._report(RuntimeError(HOSTILE), group._Call(json=True))
    check_terminal(capsys)
