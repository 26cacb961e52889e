"""A message names arguments to Python callers and options to shell users."""

from __future__ import annotations

import ast
import copy
import re
from pathlib import Path
from typing import Any, get_args

import pytest

import adapter_export as ae
from adapter_export.errors import (
    MOST_CHARACTERS,
    AdapterExportError,
    FormatError,
    OutputExistsError,
    UsageError,
    within,
)
from adapter_export.words import Face, argument, command, joined, worded

PACKAGE = Path(__file__).parents[1] / "adapter_export"


@pytest.mark.parametrize(
    ("text", "python", "shell"),
    [
        (argument("force", True), "`force=True`", "`--force`"),
        (argument("site_map"), "`site_map`", "`--site-map`"),
        (argument("pooling", "first"), '`pooling="first"`', "`--pooling first`"),
        (argument("variants", ["slots", "inputs"]), '`variants=["slots", "inputs"]`', "`--variants slots,inputs`"),
        (argument("inputs", option="input"), "`inputs`", "`--input`"),
        (argument("max_tokens", words="N"), "`max_tokens`", "`--max-tokens N`"),
        (
            command('capture(F, "m.pt")', "capture F -o m.pt"),
            '`capture(F, "m.pt")`',
            "`adapter-export capture F -o m.pt`",
        ),
        ("nothing of both", "nothing of both", "nothing of both"),
    ],
)
def test_each_face_has_its_words(text: str, python: str, shell: str) -> None:
    assert worded("give " + text + ", or not") == f"give {python}, or not"
    assert worded("give " + text + ", or not", "shell") == f"give {shell}, or not"


def test_all_facts_are_worded() -> None:
    option = argument("max_tokens")
    error = AdapterExportError("what", where=option, found=option, expected=option, fix=option + " it")
    assert str(error) == "`max_tokens`: what; found `max_tokens`; expected `max_tokens`. `max_tokens` it."
    assert error.sentence("shell").count("`--max-tokens`") == 4
    assert error.facts("shell")["where"] == "`--max-tokens`"
    assert error.facts()["fix"] == "`max_tokens` it"


def test_a_place_that_is_added_keeps_both() -> None:
    with pytest.raises(OutputExistsError) as raised, within("line 3"):
        raise OutputExistsError("a")
    assert str(raised.value) == "line 3, a: already exists. Choose another name, or pass `force=True` to replace it."
    assert "`--force`" in raised.value.sentence("shell")


@pytest.mark.parametrize("copied", [False, True], ids=["raised", "of another process"])
def test_attributes_have_the_words_of_python(copied: bool) -> None:
    option = argument("max_tokens")
    error: AdapterExportError = FormatError(option + " is odd", where=option, found=option, expected=option, fix=option)
    error = copy.deepcopy(error) if copied else error
    shown = [error.what, error.where, error.found, error.expected, error.fix]
    assert shown == ["`max_tokens` is odd", *["`max_tokens`"] * 4]
    assert error.sentence("shell").count("`--max-tokens`") == 5
    again = FormatError(error.what, where=error.where, fix=error.fix)
    assert again.sentence("shell").count("`--max-tokens`") == 3


def test_no_private_characters_are_left_in_a_refused_call() -> None:
    with pytest.raises(UsageError) as raised:
        ae.check("x", nodes=True, quick=True)
    assert raised.value.what.startswith("`nodes` needs")
    shown = " ".join(map(str, [*vars(raised.value).values(), *raised.value.args]))
    assert not any("\ue000" <= sign <= "\uf8ff" for sign in shown)


def test_no_message_outside_the_command_line_names_an_option() -> None:
    """Write `argument("force", True)` or `command(…)` instead; docstrings may name options."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        # cards, READMEs and reports show commands, and a layout has programs of its own
        if not place.startswith(("cli/", "errors.py", "words.py", "plugins/ship/files/")) and path.name not in (
            "card.py",
            "readme.py",
            "report_view.py",
        ):
            found += [f"{path.name}:{line}: {text}" for line, text in _options(ast.parse(path.read_text("utf-8")))]
    assert found == []


def _options(tree: ast.Module) -> list[tuple[int, str]]:
    """Texts with an option in them, but docstrings, renderings, `command`'s arguments, options of pip, and CSS."""
    option = re.compile(r"`--|(?<!install )(?<!var\()--[a-z-]+(?![a-z-]*:)")  # `--ink: #000`, `var(--ink)` are CSS
    exempt, named = set[ast.AST](), []
    for node in ast.walk(tree):  # the container of a node comes before it
        call = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("command", "Command", "Option")
        )
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        rendering = isinstance(node, ast.FunctionDef) and node.name.startswith(("_show", "show_"))  # of a command
        rendering |= (
            isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "EXAMPLES"
        )
        if call or docstring or rendering or node in exempt:
            exempt.update(ast.iter_child_nodes(node))
        text = node.value if isinstance(node, ast.Constant) and node not in exempt else None
        if isinstance(text, str) and option.search(text):
            named.append((node.lineno, text))
    return named


@pytest.mark.parametrize("name", ["what", "where", "found", "expected", "fix"])
def test_no_message_is_longer_than_its_bound(name: str) -> None:
    facts: dict[str, Any] = {"what": "is wrong", "where": "a.json", "found": "this", "expected": "that", "fix": "do it"}
    long = joined((f"{number} " + argument("force", True) for number in range(2_000)), " ")
    facts[name] = "begins " + long
    error = FormatError(**facts)
    with pytest.raises(FormatError) as caught, within("p" * 5000):
        raise error
    for face in get_args(Face):
        for text in (caught.value.sentence(face), *caught.value.facts(face).values()):
            assert len(text) <= MOST_CHARACTERS
        assert caught.value.facts(face)[name].startswith(("begins 0 `", "p" * 50, "Begins"))
        assert re.search(r"… \([0-9,]+ characters\)", caught.value.facts(face)[name])
        for other in facts.keys() - {name, "where"}:
            assert caught.value.facts(face)[other] == facts[other]


def test_foreign_text_cannot_steer_the_terminal() -> None:
    error = FormatError(
        "a label", found="\x1b]0;owned\x07 \u202elived\u202c na\u200dme\nnext", fix="use " + argument("force")
    )
    assert error.sentence("shell") == (
        "a label; found \\x1b]0;owned\\x07 \\u202elived\\u202c na\u200dme\nnext. Use `--force`."
    )
    assert len(str(FormatError("a label", found="\x1b" * MOST_CHARACTERS))) <= MOST_CHARACTERS
