"""Plain English: how docstrings open, how help texts are built, and phrases that read as if translated."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PYTHON = ("adapter_export", "tests", "benchmarks", "examples", "schemas", "packages")
"""Folders of Python files."""

MARKDOWN = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "examples")
"""Markdown files, and folders of them."""

SKIPPED = frozenset({".unpacked", "node_modules", "__pycache__", "site", "work"})
"""Folders of third-party or generated files."""

OPENINGS = re.compile(r"(?:What|Whether|How|Which|Of|By|Those|None|Who|Whoever|Nobody|So)\b")
"""Words that begin a clause, where a docstring or a help text needs a verb or a noun."""

HELP_CALLS = frozenset({"Option", "KindOption"})
"""Calls whose first argument is a help text."""

_NO_QUESTION = r"(?![^.]*\?)"
_IDIOMS = r"(?:found|expected|missing|wrong|decided|checked|trusted|installed)\b"

PHRASES = {
    r"none (?:if|where|means|is the base)\b": "write `None`, 'default', 'absent' or 'without'",
    r"in the places? of\b": "write 'instead of'",
    r"so (?:many|few)\b": "name the number: N rows, at most N bytes",
    r"told\b": "write 'passed', 'set', 'reported' or 'distinguished'",
    r"st(?:ands?|ood|anding) (?:for|in|at|on|beside|behind|before|there|here)\b": "write 'represents' or 'is'",
    rf"what (?:is|are|was|were) (?!{_IDIOMS}){_NO_QUESTION}": "name the thing",
    rf"what (?:lies|stands|holds|comes|remains|else)\b{_NO_QUESTION}": "name the thing",
    rf"what (?:it|they) (?:is|are|was|says?|said|takes?|gives?|holds?|has|have)\b{_NO_QUESTION}": "name the thing",
    r"(?:nobody|whoever|whomever|whatever)\b": "name the subject, or use the passive",
    r"as (?:the|its|their|a|an|each|his|her|your) [\w' -]{2,30}? (?:says?|tells?)\b": "write 'according to X'",
    r"as (?:it|they) (?:says?|lies?|stands?)\b": "write 'unchanged' or 'as in X'",
    r"(?<!leave\s)(?<!let\s)alone\b(?!:)": "write 'only', 'by itself' or 'without adapters'",
    r"heed(?:s|ed|ing)?\b": "write 'applies' or 'respects'",
    r"shall\b": "write 'must', 'should' or 'will'",
    r"t(?:akes?|ook|aking) no part\b": "write 'is excluded' or 'is not used'",
    r"lies? (?:in|at|on|beside|behind|before|below|above|there|here)\b": "files are in folders, tensors at sites",
    r"(?:pictures?|flavours?)\b": "write 'image' or 'variant': one name for one thing",
    r"however (?:many|much|long|large)\b": "write 'any number of'",
}
"""Phrases that do not occur in prose, with better wording."""

_PATTERNS = [(re.compile(rf"\b{pattern}".replace(" ", r"\s+")), advice) for pattern, advice in PHRASES.items()]
_ANY = re.compile("|".join(pattern.pattern for pattern, _ in _PATTERNS))
_COMMENT = re.compile(r"(?:^|\s)# (.*)")
_CODE = re.compile(r"`[^`\n]*`|\"[^\"\n]{1,80}\"")


def phrases(text: str) -> Iterator[tuple[int, str]]:
    """Yield line, from 0, and message for each phrase in a text; code and quotations are skipped, lines are joined."""
    prose = _CODE.sub(lambda code: "x" * len(code.group()), text.lower())
    if not _ANY.search(prose):
        return
    for pattern, advice in _PATTERNS:
        for match in pattern.finditer(prose):
            phrase = " ".join(match.group().split())
            yield text.count("\n", 0, match.start()), f"'{phrase}': {advice}"


def python_findings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and message for the docstrings, comments and help texts of a file, and in the package all messages."""
    source = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    docs = {node.value for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    has_messages = path.is_relative_to(ROOT / "adapter_export")  # strings elsewhere are mostly data
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            if node in docs and (opening := OPENINGS.match(node.value.lstrip())):
                yield node.lineno, f"'{opening.group()}': open a docstring with a verb or a noun"
            if node in docs or has_messages:
                yield from ((node.lineno + line, message) for line, message in phrases(node.value))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in HELP_CALLS and node.args:
            yield from help_findings(node.args[0])
    for number, line in enumerate(source.splitlines(), 1):
        if comment := _COMMENT.search(line):
            yield from ((number, message) for _, message in phrases(comment[1]))


def help_findings(node: ast.expr) -> Iterator[tuple[int, str]]:
    """Yield line and message for a help text that does not start with a capital noun or verb and end with a period."""
    text = node.value if isinstance(node, ast.Constant) else None
    if not isinstance(text, str) or not text:
        return
    if not re.match("[A-Z`]", text) or OPENINGS.match(text) or not text.rstrip().endswith("."):
        yield node.lineno, f"'{text[:40]}': a help text starts with a verb or a noun, and ends with a period"


def markdown_findings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and message for each phrase in a Markdown file, outside of code blocks."""
    is_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code and not line.startswith("    "):
            yield from ((number, message) for _, message in phrases(line.replace("*", " ")))


def files(names: tuple[str, ...], suffix: str) -> Iterator[Path]:
    """Yield the files with a suffix in folders of the checkout, or named directly."""
    for name in names:
        found = (ROOT / name).rglob(f"*{suffix}") if (ROOT / name).is_dir() else [ROOT / name]
        yield from sorted(path for path in found if SKIPPED.isdisjoint(path.relative_to(ROOT).parts))


def located(path: Path, findings: Iterator[tuple[int, str]]) -> list[str]:
    """Format findings with file and line."""
    return [f"{path.relative_to(ROOT)}:{line}: {message}" for line, message in findings]


@pytest.mark.parametrize("folder", PYTHON)
def test_python_files_are_plain_english(folder: str) -> None:
    found = [line for path in files((folder,), ".py") for line in located(path, python_findings(path))]
    assert not found, "\n".join(found)


def test_documents_are_plain_english() -> None:
    found = [line for path in files(MARKDOWN, ".md") for line in located(path, markdown_findings(path))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("The base, none if nothing is chosen.", "'none if'"),
        ("Loads so many rows in the\n    place of the others.", "'in the place of'"),
        ("The engine is told what lies beside it.", "'what lies'"),
        ("Rows are read as the manifest says.", "'as the manifest says'"),
    ],
)
def test_translated_phrases_are_found(text: str, message: str) -> None:
    assert any(found.startswith(message) for _, found in phrases(text))


def test_code_questions_and_other_words_pass() -> None:
    assert not list(phrases("What is a slot? `none if` and `so many` are code. A standalone tool distinguishes them."))
