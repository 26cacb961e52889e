"""Tables as notebooks show them, and numbers in texts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from wording import wrong_words

from adapter_export.tables import Table, html_of, number_of, verb_for

PACKAGE = Path(__file__).parents[1] / "adapter_export"
PLURAL = re.compile(r" (?:[a-z-]+ )?[a-z]*[^su ]s\b")
NO_PLURAL = re.compile(r" (?:[a-z-]+ )?(?:is|was|has|does|this|as|its|bytes|points)\b| of\b")


def test_quoted_text_in_tables_is_escaped() -> None:
    """Labels and paths come from files of others."""
    shown = html_of(
        Table(("label",), [("<b>x</b>",)]), "unknown label <script>alert(1)</script>", "\x1b]0;owned\x07 & more"
    )
    assert "<script" not in shown
    assert "<b>" not in shown
    assert "<p>unknown label &lt;script&gt;alert(1)&lt;/script&gt;</p>" in shown
    assert "\\x1b]0;owned\\x07 &amp; more" in shown


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 axes match"), (1, "1 axis matches"), (2, "2 axes match"), (2000, "2,000 axes match")]
)
def test_a_noun_and_its_verb_follow_a_number(count: int, words: str) -> None:
    assert f"{number_of(count, 'axis', 'axes')} {verb_for(count, 'match')}" == words


def counted_plurals(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each f-string that writes a computed count before a plural."""
    for node in ast.walk(ast.parse(source)):
        for value, after in zip(node.values, node.values[1:], strict=False) if isinstance(node, ast.JoinedStr) else ():
            if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
                continue
            counts = isinstance(value.value, ast.Call) and getattr(value.value.func, "id", "") in ("len", "sum")
            if counts and PLURAL.match(str(after.value)) and not NO_PLURAL.match(str(after.value)):
                yield node.lineno, f"{ast.unparse(value.value)}{after.value}"


def test_counts_before_plurals_are_found() -> None:
    assert list(
        counted_plurals("f'{len(x)} rows', f'{sum(x):,} more files here', f'{len(x)} of them', f'{x} rows'")
    ) == [
        (1, "len(x) rows"),
        (1, "sum(x) more files here"),
    ]


def test_counts_get_their_nouns_from_number_of() -> None:
    wrong = {
        f"{path.relative_to(PACKAGE)}:{line}": text
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in counted_plurals(path.read_text("utf-8"))
    }
    assert not wrong


@pytest.mark.parametrize("text", ["1 rows", "x (1 texts)", "Did you mean `run`?.", "done.."])
def test_wrong_words_are_found(text: str) -> None:
    assert list(wrong_words(text))


@pytest.mark.parametrize(
    "text", ["1 row is", "11 rows", "v0.1 rows", "1 is", "did you mean `run`? If not, …", "a...", "../x.."]
)
def test_correct_words_are_not_reported(text: str) -> None:
    assert not list(wrong_words(text))
