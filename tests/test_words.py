"""Texts keep the names that they hold: nothing in the package formats or joins `Words` as plain text."""

from __future__ import annotations

import ast
import copy
import json
import pickle  # noqa: TID251 - errors go to other processes pickled
from collections.abc import Iterator
from pathlib import Path

import pytest
from flattened_words import FlattenedWordsError

from adapter_export.words import Words, argument, command, joined, visible, words_of

PACKAGE = Path(__file__).parents[1] / "adapter_export"
NAMING = {"argument", "command", "joined", "Words"}
FORCE = argument("force", True)
TEXT = "pass " + FORCE + " or " + command("f()", "f") + "."
SHELL = "pass `--force` or `adapter-export f`."


@pytest.mark.parametrize(
    ("words", "shell"),
    [
        (TEXT, SHELL),
        (FORCE + "", "`--force`"),
        ("" + FORCE, "`--force`"),
        (TEXT.rstrip("."), SHELL[:-1]),
        (TEXT.capitalized(), "P" + SHELL[1:]),
        (FORCE.capitalized(), "`--force`"),
        (FORCE.rstrip("`"), "`--force`"),
        (joined(["a", FORCE, TEXT], "; "), f"a; `--force`; {SHELL}"),
        (joined([]), ""),
        (visible("\x07" + TEXT), f"\\x07{SHELL}"),
        (TEXT.edited(str.upper), "PASS `--force` OR `adapter-export f`."),
        (pickle.loads(pickle.dumps(TEXT)), SHELL),
        (copy.deepcopy(TEXT), SHELL),
        (words_of(json.loads(json.dumps(TEXT.to_json()))), SHELL),
    ],
)
def test_string_operations_keep_argument_names(words: Words, shell: str) -> None:
    assert words.sentence("shell") == shell
    assert words == words.sentence()


def test_values_of_arguments_are_escaped_in_both_wordings() -> None:
    named = argument("base", "\x1b\u202e")
    assert named.sentence("shell") == "`--base \\x1b\\u202e`"
    assert named == '`base="\\u001b\\u202e"`'


@pytest.mark.parametrize("operation", ["f'{text}'", "f'{text:>99}'", "'{}'.format(text)", "text[:9]", "text.upper()"])
def test_flattening_is_refused_inside_the_package_alone(operation: str) -> None:
    with pytest.raises(FlattenedWordsError, match=r"adapter_export\.words, line 1"):
        eval(operation, {"__name__": "adapter_export.words", "text": TEXT})  # noqa: S307
    eval(operation, {"__name__": "adapter_export.words", "text": Words("pass nothing")})  # noqa: S307
    eval(operation, {"__name__": "another_package", "text": TEXT})  # noqa: S307
    assert eval("f'{text!s}'", {"__name__": "adapter_export.words", "text": TEXT}) == str(TEXT)  # noqa: S307


def flattened(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield f-strings, `str.join`, `format` and `%` with a name in them, called there or assigned in the same scope."""
    named = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and names_an_argument(node.value, set())
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        values: list[ast.expr] = []
        if isinstance(node, ast.JoinedStr):
            parts = [part for part in node.values if isinstance(part, ast.FormattedValue)]
            values = [part.value for part in parts if part.conversion != ord("s")]
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("join", "format")
        ):
            values = node.args
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            values = [node.right]
        if any(names_an_argument(value, named) for value in values):
            yield node


def names_an_argument(value: ast.expr, named: set[str]) -> bool:
    """Return whether a text or a list of texts has a name; calls of other functions are not followed."""
    if isinstance(value, ast.Call):
        if isinstance(value.func, ast.Name) and value.func.id in ("map", "filter", "list", "tuple", "reversed"):
            return any(names_an_argument(item, named) for item in value.args)
        return isinstance(value.func, ast.Name) and value.func.id in NAMING
    if isinstance(value, ast.Name):
        return value.id in named or value.id in NAMING
    if isinstance(value, ast.IfExp):
        return names_an_argument(value.body, named) or names_an_argument(value.orelse, named)
    if isinstance(value, ast.ListComp | ast.GeneratorExp | ast.SetComp):
        return names_an_argument(value.elt, named)
    if isinstance(value, ast.BinOp | ast.BoolOp | ast.List | ast.Tuple | ast.Set | ast.Starred | ast.Subscript):
        return any(names_an_argument(item, named) for item in ast.iter_child_nodes(value) if isinstance(item, ast.expr))
    return False


def scopes(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield each function, and the statements of the module outside of functions and classes."""
    definitions = ast.FunctionDef | ast.AsyncFunctionDef
    yield from (node for node in ast.walk(tree) if isinstance(node, definitions))
    yield ast.Module([node for node in tree.body if not isinstance(node, definitions | ast.ClassDef)], [])


def test_no_source_flattens_a_name() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        places = {node.lineno for scope in scopes(ast.parse(path.read_text("utf-8"))) for node in flattened(scope)}
        found += [f"{path.relative_to(PACKAGE)}:{line}" for line in sorted(places)]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "f'pass {argument(name)}'",
        "fix = argument(name) + '.'\nraise E(f'{fix}')",
        "', '.join(map(argument, names))",
        "'; '.join([argument(name), other])",
        "flags = [argument(name) for name in names]\n' and '.join(flags[:1])",
        "'pass {}'.format(command(call, line))",
        "'pass %s' % (argument(name),)",
    ],
)
def test_flattening_in_a_source_is_detected(source: str) -> None:
    assert list(flattened(ast.parse(source)))
