"""Names are telling: pronouns and bare participles are left to a few lines, and their number can only fall."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "adapter_export"

VAGUE = {"found", "one", "own", "said", "there", "kept", "given", "made", "taken", "asked"}

MOST_LINES = 5
"""Lines that such a name may live."""

MOST_LIVING = 1
"""Names that live longer: the fact of errors that is called `found`."""

MOST_SHARE = 0.0065
"""Share of such names among all that the package binds, likewise."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def binds(node: ast.AST) -> str | None:
    """Return the name that a node binds."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    if isinstance(node, ast.arg):
        return node.arg
    return node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else None


def within(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a scope, without those of the scopes inside it that bind the same names."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, (*FUNCTIONS, *COMPREHENSIONS, ast.ClassDef)):
            yield from within(node)
        elif not {name for inner in ast.walk(node) if (name := binds(inner))} & VAGUE:
            yield from ast.walk(node)


def lives(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    """Yield each vague name that a function or a comprehension binds, and the lines of its first and last use."""
    for scope in ast.walk(tree):
        if isinstance(scope, (*FUNCTIONS, *COMPREHENSIONS)):
            lines: dict[str, list[int]] = {}
            bound = set[str]()
            for node in within(scope):
                name = node.id if isinstance(node, ast.Name) else binds(node)
                if name in VAGUE:
                    lines.setdefault(name, []).append(getattr(node, "lineno", 0))
                    bound |= {name} if binds(node) else set()
            yield from ((name, min(lines[name]), max(lines[name])) for name in bound)


def test_vague_names_live_a_few_lines() -> None:
    living = [
        f"{path.relative_to(PACKAGE)}:{first}: `{name}` lives {last - first + 1} lines"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, first, last in lives(ast.parse(path.read_text("utf-8")))
        if last - first > MOST_LINES
    ]
    assert len(living) <= MOST_LIVING, "\n".join(living)


def test_vague_names_are_few() -> None:
    names = [
        name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if (name := binds(node))
    ]
    share = sum(name.strip("_") in VAGUE for name in names) / len(names)
    assert share <= MOST_SHARE, f"{share:.2%}"
