"""`--config FILE`: options of any command from TOML; typed options override it, and unknown ones are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from click.testing import CliRunner, Result

from adapter_export.cli.click_command import make_command
from adapter_export.cli.group import Entry, LazyGroup
from adapter_export.commands.command import Command, Screen
from adapter_export.option import Force, Option
from adapter_export.reporting import SILENT, Reporter

RECEIVED: list[dict[str, Any]] = []


def serve(
    bundle: Path,
    *,
    output: Annotated[Path, Option("The file to write.", "PATH", "-o")],
    rows: Annotated[int, Option("Rows.", "N", least=1)] = 32,
    rate: Annotated[float, "Rate."] = 0.5,
    on: Annotated[tuple[str, ...], "Layers."] = (),
    bake: Annotated[Sequence[str], Option("Constant ones.", "NAME")] = (),
    ranks: Annotated[float | Mapping[str, float], "Ranks."] = 1.0,
    provider: Annotated[Literal["cpu", "cuda"], "Where."] = "cpu",
    force: Force = False,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Serve BUNDLE.

    Args:
        bundle: the bundle.
    """
    found = {**locals()}
    found.pop("reporter")
    RECEIVED.append(found)
    return found


def _document(found: dict[str, Any], _: Screen) -> dict[str, Any]:
    return found


COMMAND = Command(
    serve, lambda found, screen: screen.report(str(found)), examples=("tool serve b",), document=_document
)


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a group with one command and a group in a group, on a configuration."""
    monkeypatch.chdir(tmp_path)
    entry = Entry("Serve.", lambda: make_command(COMMAND, "serve"))
    inner = LazyGroup("import", table={"peft": Entry("Import.", lambda: make_command(COMMAND, "peft"))})
    group = LazyGroup("tool", table={"serve": entry, "import": Entry("Import.", lambda: inner)})

    def run(config: str, *words: str) -> Result:
        Path("c.toml").write_text(config, encoding="utf-8")
        return CliRunner().invoke(group, [*words, "--config", "c.toml"], prog_name="tool")

    return run


ALL = """
[serve]
output = "out"
rows = 8
rate = 1e-4
on = ["query", "value"]
bake = ["a", "b"]
ranks = { query = 8, value = 4 }
provider = "cuda"
force = true
"""


def _given(found: Result) -> dict[str, Any]:
    assert found.exit_code == 0, found.output
    return RECEIVED.pop()


def test_a_file_sets_options_of_every_type(tool) -> None:
    assert _given(tool(ALL, "serve", "b")) == {
        "bundle": Path("b"),
        "output": Path("out"),
        "rows": 8,
        "rate": 1e-4,
        "on": ("query", "value"),
        "bake": ("a", "b"),
        "ranks": {"query": 8, "value": 4},
        "provider": "cuda",
        "force": True,
    }


def test_typed_options_override_the_file_and_the_file_defaults(tool) -> None:
    found = _given(tool(ALL, "serve", "b", "--rows", "3", "--bake", "c", "-o", "other"))
    assert (found["rows"], found["bake"], found["output"], found["rate"]) == (3, ("c",), Path("other"), 1e-4)
    assert _given(tool('[serve]\noutput = "x"', "serve", "b"))["rows"] == 32


def test_commands_in_a_group_read_their_nested_table(tool) -> None:
    assert _given(tool('[import.peft]\noutput = "x"\nrows = 5', "import", "peft", "b"))["rows"] == 5


def test_tables_of_other_commands_change_nothing(tool) -> None:
    assert _given(tool('[import.peft]\nrows = 5\n[serve]\noutput = "x"', "serve", "b"))["rows"] == 32


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("[serve]\nroows = 3", ["c.toml, `[serve]`", "found `roows`", "id you mean `rows`?"]),
        ("[sreve]\nrows = 3", ["c.toml", "found `sreve`", "id you mean `serve`?"]),
        ("[import.peff]\nrows = 3\n[serve]\nbundle = 'x'", ["c.toml, `[serve]`", "found `bundle`"]),
        ("rows = 3", ["c.toml", "found `rows`"]),
        ("serve = 3", ["c.toml, `serve`", "must be a table"]),
        ("[serve]\nconfig = 'x'", ["found `config`"]),
        ("[serve]\nrows = 0", ["c.toml, `serve.rows`", "x>=1"]),
        ("[serve]\nrows = 2.5", ["c.toml, `serve.rows`", "found `2.5`"]),
        ("[serve]\nrows = true", ["c.toml, `serve.rows`", "found `True`"]),
        ("[serve]\nforce = 1", ["c.toml, `serve.force`", "`true` or `false`"]),
        ("[serve]\nprovider = 'tpu'", ["c.toml, `serve.provider`", "'cpu', 'cuda'"]),
        ("[serve]\nrows = 1979-05-27", ["c.toml, `serve.rows`"]),
        ("[serve\nrows = 1", ["c.toml", "is not TOML"]),
        ("rows = " + "[" * 100_000, ["c.toml", "is too deeply nested"]),
    ],
)
def test_invalid_settings_are_named_with_file_and_key(tool, config: str, words: list[str]) -> None:
    found = tool(config, "serve", "b", "-o", "out")
    assert found.exit_code in (2, 3), found.output
    assert "This is a bug" not in found.stderr
    for word in words:
        assert word in found.stderr


def test_missing_required_options_are_refused(tool) -> None:
    assert "Missing option" in tool("[serve]\nrows = 1", "serve", "b").stderr


def test_missing_config_files_are_refused(tool) -> None:
    Path("c.toml").write_text("")
    found = CliRunner().invoke(make_command(COMMAND, "serve"), ["b", "-o", "out", "--config", "nowhere.toml"])
    assert found.exit_code != 0
