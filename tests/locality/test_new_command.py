"""A command with one option is one module, and one line of `adapter_export/__init__.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import TrialChange

MODULE = '''"""Count the letters of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from adapter_export.commands.command import Command, Screen
from adapter_export.errors import UsageError
from adapter_export.option import Option
from adapter_export.reporting import SILENT, Reporter


def letters(
    text: str, *, skip: Annotated[str, Option("Letters that do not count.", "ABC")] = "", reporter: Reporter = SILENT
) -> int:
    """Count the letters of TEXT.

    Args:
        text: the text.

    Raises:
        UsageError: the text is empty.
    """
    if not text:
        raise UsageError("the text is empty")
    reporter.step("counting")
    return sum(one not in skip for one in text)


def _show(count: int, screen: Screen) -> None:
    screen.report(f"{screen.given['text']}: {count} letters")


def _document(count: int, _: Screen) -> Mapping[str, object]:
    return {"letters": count}


COMMAND = Command(letters, _show, document=_document, examples=("adapter-export letters word --skip a",))
'''


def test_a_command_with_an_option_touches_two_files(trial: TrialChange) -> None:
    trial.add("commands/bundles/letters.py", MODULE)
    trial.edit(
        "__init__.py",
        "from adapter_export.commands.bundles.sign import sign\n",
        "from adapter_export.commands.bundles.letters import letters as letters\n"
        "from adapter_export.commands.bundles.sign import sign\n",
    )
    assert trial.python("import adapter_export as ae; print(ae.letters('banana', skip='n'))") == "4\n"
    assert "  letters" in trial.command("--help").partition("Bundles:")[2].partition("Serving:")[0]
    page = trial.command("letters", "--help")
    assert all(
        words in page for words in ("Count the letters of TEXT.", "--skip ABC", "Letters that do not", "word --skip")
    )
    assert "Raises" not in page
    assert trial.json("letters", "banana", "--skip", "an") == {"letters": 1}
    (trial.folder / "c.toml").write_text('[letters]\nskip = "b"\n', encoding="utf-8")
    assert trial.json("letters", "banana", "--config", "c.toml") == {"letters": 5}
    assert len(trial.touched) == 2
