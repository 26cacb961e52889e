"""The house stands: floors, no prints, no file too long."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import adapter_export

PACKAGE = Path(adapter_export.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
UTF8_ENVIRONMENT = {"PYTHONIOENCODING": "utf-8"}


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _rooms_outside_cli() -> list[Path]:
    return [path for path in FILES if path.relative_to(PACKAGE).parts[0] != "cli"]


def test_every_room_imports_only_from_the_floors_below() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 broken" in found.stdout


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_reader_can_hold_the_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES, f"{_name(path)}: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{_name(path)}: `{node.name}` has {lines} lines"


@pytest.mark.parametrize("path", _rooms_outside_cli(), ids=_name)
def test_only_the_command_line_prints_and_imports_late(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not [call.lineno for call in calls if call.func.id == "print"]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = [
        inner.lineno for node in functions for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)
    ]
    assert not late, f"{_name(path)}: imports inside functions at lines {late}"
    assert not [node.name for node in functions if node.name == "__getattr__"]


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_no_error_is_swallowed_unnamed(path: Path) -> None:
    """One place may catch everything: where the command line turns what is left into a bug report."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    broad = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}))
    ]
    assert len(broad) == (_name(path) == "cli/main.py"), f"{_name(path)}: lines {broad}"
