"""The documents keep their word: commands parse, links lead somewhere, nothing of the makers' machines shows."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import api_pages
import click
import commands_page
import errors_page
import pytest

from adapter_export.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
IDS = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
README = ROOT / "README.md"


def _commands(text: str) -> list[list[str]]:
    """Every command line of `adapter-export` in code, in blocks and between backticks."""
    blocks = [
        line
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text.replace("\\\n", ""), re.S | re.M)
        if language in ("", "sh", "console")
        for line in block.splitlines()
    ]
    inline = re.findall(r"`(adapter-export [a-z]+ [^`]+)`", text)
    lines = [line.strip().removeprefix("$ ") for line in [*blocks, *inline]]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("adapter-export ")]


@cache
def generated() -> set[Path]:
    """Return the pages that only the site has."""
    pages = [*commands_page.pages(), *errors_page.pages(), *api_pages.pages()]
    return {ROOT / "docs" / page for page in pages}


ALL_COMMANDS = [
    (name, command) for path, name in zip(DOCUMENTS, IDS, strict=True) for command in _commands(path.read_text("utf-8"))
]


@pytest.mark.parametrize(("name", "command"), ALL_COMMANDS, ids=[" ".join(command) for _, command in ALL_COMMANDS])
def test_every_command_in_the_documents_parses(
    name: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--config" in command:
        (shown,) = re.findall(r"```toml\n(.*?)```", (ROOT / name).read_text("utf-8"), re.S)
        Path(command[command.index("--config") + 1]).write_text(shown, encoding="utf-8")
    if command == ["--help"]:
        return
    assert command[0] in COMMANDS, name
    found = main.get_command(click.Context(main), command[0])
    assert found is not None
    if len(command) > 2:
        found.make_context(command[0], command[1:], parent=click.Context(main, info_name="adapter-export"))


def test_the_readme_can_be_read_at_once() -> None:
    assert README.read_text("utf-8").count("\n") <= 180


def test_the_readme_shows_the_way_from_a_model_to_a_service() -> None:
    shown = [command[0] for command in _commands(README.read_text("utf-8"))]
    assert {"capture", "train", "build", "check", "run"} <= set(shown)


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_local_links_point_to_existing_files(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text("utf-8"))
    local = [(path.parent / link).resolve() for link in links if "://" not in link]
    assert not [link for link in local if not link.exists() and link not in generated()]


def test_files_that_the_readme_names_exist() -> None:
    named = re.findall(r"`((?:examples|docs|benchmarks|schemas)/[\w./-]+)`", README.read_text("utf-8"))
    assert "examples/plain_onnxruntime.py" in named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_image_follows_light_and_dark() -> None:
    image = (ROOT / "docs" / "idea.svg").read_text("utf-8")
    assert "prefers-color-scheme: dark" in image
    assert "<title" in image
