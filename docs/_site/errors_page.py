"""`reference/errors`: every error of the package with its messages, from `errors.py` and the code that raises them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from adapter_export import errors
from adapter_export.words import argument, command, worded

_PACKAGE = Path(errors.__file__).parent
_FACES: Mapping[str, Callable[..., str]] = {"argument": argument, "command": command}
"""Functions that put the name of an argument or a call into a message."""

_EXAMPLE = """\
# Errors

```python
import adapter_export as ae

try:
    bundle = ae.open_bundle("bundle")
except ae.errors.InputError as error:
    print(error.what, error.where, error.found, error.expected, error.fix)
```

Every error of the package is an `AdapterExportError`. Its message contains the problem, the place, what was found, what
was expected, and what to do next. `error.facts()` returns the same as data. The command line exits with the code of the
error, and prints the same facts with `--json`. Exit code 5 is a bug in the package: please report it. The messages on
this page come from the code; `…` is a value.

| Error | Exit code | When |
|---|---|---|"""


class Message(NamedTuple):
    """A message in the code, with `…` for values: what is wrong, and what to do, which may be empty."""

    what: str
    fix: str


def pages() -> Mapping[str, str]:
    """Return the text of the page by its path."""
    return {"reference/errors.md": "\n".join(_lines()) + "\n"}


def _lines() -> Iterator[str]:
    yield _EXAMPLE
    tree = list(_tree(errors.AdapterExportError))
    for depth, error in tree:
        name = error.__name__
        yield f"| {'&emsp;' * depth}[`{name}`](#{name.lower()}) | {error.exit_code} | {_summary(error)} |"
    yield f"\nWarnings: `AbandonedFileWarning`. {_summary(errors.AbandonedFileWarning)}\n"
    found = messages()
    for _, error in tree:
        yield f"## {error.__name__}\n\n{_summary(error)} Exit code {error.exit_code}.\n"
        if own := found.get(error.__name__):
            yield f'??? note "Messages ({len(own)})"\n\n    | What is wrong | What to do |\n    |---|---|'
            yield from (f"    | {_cell(what)} | {_cell(fix)} |" for what, fix in sorted(own))
            yield ""


def messages() -> Mapping[str, set[Message]]:
    """Return the messages of each class of errors, by its name, as the code of the package states them."""
    found = dict[str, set[Message]]()
    for path in sorted(_PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and _has_own_message(node.name):
                calls = [one for one in ast.walk(node) if isinstance(one, ast.Call)]
                ((name, call, known),) = [
                    (node.name, one, _defaults(node)) for one in calls if ast.unparse(one.func) == "super().__init__"
                ]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and _takes_message(node.func.id):
                name, call, known = node.func.id, node, {}
            else:
                continue
            what = _template(call.args[0], known) if call.args else "…"
            fixes = [_template(word.value, known) for word in call.keywords if word.arg == "fix"]
            if what.strip("…` "):
                found.setdefault(name, set()).add(Message(what, "".join(fixes).strip("…")))
    return found


def _error(name: str) -> type[errors.AdapterExportError] | None:
    one = getattr(errors, name, None)
    return one if isinstance(one, type) and issubclass(one, errors.AdapterExportError) else None


def _has_own_message(name: str) -> bool:
    error = _error(name)
    return error not in (None, errors.AdapterExportError) and "__init__" in vars(error)


def _takes_message(name: str) -> bool:
    return _error(name) is not None and not _has_own_message(name)


def _defaults(node: ast.ClassDef) -> dict[str, ast.expr]:
    """Return the variables of a constructor and the defaults of its parameters."""
    (made,) = (one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__")
    assigned = [one for one in made.body if isinstance(one, ast.Assign)]
    parameters, defaults = made.args.args, made.args.defaults
    named = zip(parameters[len(parameters) - len(defaults) :], defaults, strict=True)
    keywords = zip(made.args.kwonlyargs, made.args.kw_defaults, strict=True)
    return {
        **{one.arg: default for one, default in [*named, *keywords] if default is not None},
        **{one.targets[0].id: one.value for one in assigned if isinstance(one.targets[0], ast.Name)},
    }


def _template(node: ast.expr, known: Mapping[str, ast.expr]) -> str:
    """Return the text of an expression, with `…` for values that the code computes."""
    if isinstance(node, ast.Name) and node.id in known:
        return _template(known[node.id], known)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part, known) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _template(node.value, known)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FACES:
        try:
            words = [ast.literal_eval(one) for one in node.args]
            named = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg is not None}
        except ValueError:
            return "…"
        return worded(_FACES[node.func.id](*words, **named))
    return "…"


def _tree(
    error: type[errors.AdapterExportError], depth: int = 0
) -> Iterator[tuple[int, type[errors.AdapterExportError]]]:
    yield depth, error
    for child in error.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child, depth + 1)


def _summary(error: type) -> str:
    return (inspect.getdoc(error) or "").partition("\n")[0]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")
