"""The rules of the pages in `docs`: a command first, limits last, and short enough to be read."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from proselint.checks import __register__
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry
from proselint.tools import LintFile

DOCS = Path(__file__).parents[1] / "docs"
README = DOCS.parent / "README.md"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "decisions" not in path.parts)
GUIDES = [path for path in PAGES if path.parent.name in ("how-to", "tutorial")]
LONG = {"docs/reference/format.md", "docs/reference/architectures.md", "docs/project/demo-log.md"}
"""The specification, a table and a log that programs write."""

GENERATED = {"docs/reference/support-matrix.md", "docs/reference/peers.md", "docs/project/demo-log.md"}
"""Pages that programs write."""

MOST_LINES, MOST_WORDS = 300, 50_000
_GENERATED_BLOCK = re.compile(r"<!-- [\w ]+: begin -->.*?<!-- [\w ]+: end -->", re.DOTALL)
_COMMAND = re.compile(r"(?:\$ )?(?:adapter-export|python|make|pip|npm|cmake|docker|curl)\b")
_CODE = {"python", "java", "ts", "js", "cpp", "c", "rust", "go"}


_OFF = ("typography", "dates_times", "annotations")
"""Checks of proselint for typeset text: curly quotes, dashes of dates, remarks in capitals."""

_NO_PROSE = re.compile(
    r"^```.*?^```|^#.*?$|^(?: {4}|\|).*?$|<!--.*?-->|`[^`\n]+`|(?<=\])\([^)]+\)|multiply-accumulates",
    re.MULTILINE | re.DOTALL,
)


def _name(path: Path) -> str:
    return path.relative_to(DOCS.parent).as_posix()


@pytest.mark.parametrize("path", GUIDES, ids=_name)
def test_a_guide_starts_with_a_command_and_ends_with_limits(path: Path) -> None:
    text = path.read_text("utf-8")
    start, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", start, re.M | re.S)
    lines = [line for _, block in blocks for line in block.splitlines()]
    runnable = any(language in _CODE for language, _ in blocks) or any(map(_COMMAND.match, lines))
    assert runnable, "the part above the first heading has no command and no code"
    assert sections[-1].startswith("Limits\n"), "the last section is not `## Limits`"


def _findings(name: str, markdown: str) -> list[str]:
    checks = {**DEFAULT["checks"], **dict.fromkeys(_OFF, False)}
    found = LintFile(name, _NO_PROSE.sub("·", markdown)).lint({**DEFAULT, "checks": checks})
    return [f"line {one.pos[0]}: {one.check_result.message}" for one in found]


@pytest.fixture(scope="module", autouse=True)
def _checks() -> None:
    CheckRegistry().register_many(__register__)


@pytest.mark.parametrize("path", [*PAGES, README], ids=_name)
def test_proselint_finds_nothing_in_the_prose(path: Path) -> None:
    assert _findings(path.name, path.read_text("utf-8")) == []


def test_proselint_reads_prose_and_no_code() -> None:
    assert len(_findings("page.md", "# A\n\nIt is very unique for ever.\n")) >= 2
    assert (
        _findings("page.md", "# A\n\n    very unique for ever\n\n```\nvery\n```\n\n| very |\n|---|\n\n`very`.\n") == []
    )


@cache
def _source() -> str:
    return "".join(path.read_text("utf-8") for path in (DOCS.parent / "adapter_export").rglob("*.py"))


def _messages() -> list[tuple[str, str]]:
    """Page and message of each row in tables of the guides that start with a column `message`."""
    tables = [
        (_name(path), table)
        for path in GUIDES
        for table in re.findall(r"^\| message \|.*?\n\|[-|]+\n((?:\|.*\n)+)", path.read_text("utf-8"), re.MULTILINE)
    ]
    return [(name, row.split(" | ")[0].strip("| `")) for name, table in tables for row in table.splitlines()]


@pytest.mark.parametrize(("name", "message"), _messages())
def test_the_package_raises_the_messages_that_guides_explain(name: str, message: str) -> None:
    known = message in _source()
    assert known, f"{name}: no error says {message!r}"


def test_the_package_raises_the_errors_of_the_zoo() -> None:
    rows = (DOCS / "reference" / "architectures.md").read_text("utf-8")
    errors = set(re.findall(r"refused by `\w+`: (.*?); found", rows))
    assert errors
    assert not [error for error in errors if error not in _source()]


def test_no_page_is_longer_than_a_reader_bears() -> None:
    lines = {_name(path): path.read_text("utf-8").count("\n") for path in PAGES}
    assert {name for name, count in lines.items() if count > MOST_LINES} <= LONG


def test_the_pages_stay_within_their_budget_of_words() -> None:
    words = {
        _name(path): len(_GENERATED_BLOCK.sub("", path.read_text("utf-8")).split())
        for path in PAGES
        if _name(path) not in GENERATED
    }
    assert sum(words.values()) <= MOST_WORDS, sorted(words.items(), key=lambda one: -one[1])[:10]
