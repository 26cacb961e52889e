"""Commands made from signatures: each parameter is what its type, its default and its annotation say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import click
import pytest
from click.testing import CliRunner

from adapter_export.cli import click_command
from adapter_export.commands.command import Command
from adapter_export.option import Force, Option, OptionsOf
from adapter_export.reporting import SILENT, Reporter

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.graph.kinds import Kind


class More(TypedDict, total=False):
    """Options that may be left out."""

    rank: Annotated[float | Mapping[str, float], "The rank."]
    gate: Annotated[bool, "A gate."]
    scaling: Annotated[float | Literal["learned", "channel"], "The factor."]


GIVEN: list[dict[str, Any]] = []


def attempt(
    model: Path,
    names: Sequence[str],
    output: Annotated[Path, Option("The file to write.", "PATH", "-o")],
    *,
    kind: Annotated[str | Kind, Option("The kind.", lambda: "[a|b]")] = "a",
    tokens: Annotated[int | None, Option("Most tokens.", "N", least=1)] = None,
    init: Annotated[str | None, Option("The scheme.", choices=lambda: ("normal", "zero"))] = None,
    on: Annotated[tuple[str, ...], "Linear layers."] = (),
    weights: Annotated[tuple[float, ...] | Mapping[str, float] | None, "The weights."] = None,
    bake: Annotated[Sequence[str], Option("Constant ones.", "NAME")] = (),
    members: Annotated[Sequence[Path], Option("Members.", "A,B,…", commas=True)] = (),
    force: Force = False,
    secret: Annotated[str | None, Option(variable="TRY_SECRET")] = None,
    example: np.ndarray | None = None,
    reporter: Reporter = SILENT,
    **options: Annotated[Any, OptionsOf(More)],
) -> Attempt:
    """Try it.

    Args:
        model: the model.
    """
    given = {**locals(), **options}
    GIVEN.append(given)
    reporter.step("trying")
    return Attempt(kind == "a")


@dataclass(frozen=True)
class Attempt:
    passed: bool

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed}


COMMAND = Command(
    attempt,
    lambda found, screen: screen.line(f"{screen.given['model']}: {found.passed}"),
    passed=lambda found: found.passed,
    exit_codes="0 tried",
    examples=("tool try x",),
)


@pytest.fixture
def made() -> click.Command:
    GIVEN.clear()
    return click_command.make_command(COMMAND, "try")


def test_help_matches_the_annotations(made: click.Command) -> None:
    found = CliRunner().invoke(made, ["--help"]).output
    lines = [" ".join(line.split()) for line in found.splitlines()]
    assert lines[0] == "Usage: try [OPTIONS] MODEL NAMES..."
    assert [line for line in lines if line.startswith("-")] == [
        "-o, --output PATH The file to write. [required]",
        "--kind [a|b] The kind. [default: a]",
        "--tokens N Most tokens. [x>=1]",
        "--init [normal|zero] The scheme.",
        "--on A,B,… Linear layers.",
        "--weights N,…|NAME=N,… The weights.",
        "--bake NAME Constant ones.",
        "--members A,B,… Members.",
        "--force Replace an existing output.",
        "--rank N|NAME=N,… The rank.",
        "--gate A gate.",
        "--scaling N|learned|channel The factor.",
        "--json Write one JSON document to stdout.",
        "--config FILE Read options from `[COMMAND]` in a TOML file.",
        "--help Show this message and exit.",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"kind": "a", "on": (), "bake": (), "force": False, "secret": None, "names": ("x", "y")}),
        (["--on", "a, b", "--gate", "--rank", "8"], {"on": ("a", "b"), "gate": True, "rank": 8}),
        (["--rank", "query=8,value=0.5"], {"rank": {"query": 8, "value": 0.5}}),
        (["--on", "a", "--weights", "1,2.5"], {"weights": (1.0, 2.5)}),
        (["--on", "a", "--weights", "a=1,b=2.5"], {"weights": {"a": 1, "b": 2.5}}),
        (["--bake", "a", "--bake", "b", "--scaling", "learned"], {"bake": ("a", "b"), "scaling": "learned"}),
        (
            ["--members", "a,b", "--force", "--scaling", "2", "--tokens", "3"],
            {"members": ("a", "b"), "force": True, "scaling": 2.0},
        ),
    ],
)
def test_options_are_converted_to_their_types(made: click.Command, words: list[str], expected: dict[str, Any]) -> None:
    found = CliRunner().invoke(made, ["m", "x", "y", "-o", "out", *words])
    assert found.exit_code == 0, found.output
    given = GIVEN.pop()
    assert (given["model"], given["output"]) == (Path("m"), Path("out"))
    assert {name: given[name] for name in expected} == expected
    assert {"gate", "rank", "scaling"} & set(given) == {"gate", "rank", "scaling"} & set(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "a,"], "`a,` has an empty item"),
        (["--rank", "much"], "neither a number nor a list such as `query=8,value=4`"),
        (["--rank", "a=1,a=2"], "gives one name two numbers"),
        (["--weights", "a=1,a=2"], "gives one adapter two weights"),
        (["--scaling", "big"], "neither a number nor `learned` or `channel`"),
        (["--tokens", "0"], "0 is not in the range x>=1"),
        (["--init", "lucky"], "'lucky' is not one of 'normal', 'zero'"),
    ],
)
def test_invalid_option_values_are_refused(made: click.Command, words: list[str], message: str) -> None:
    found = CliRunner().invoke(made, ["m", "x", "-o", "out", *words])
    assert found.exit_code == 2
    assert message in " ".join(found.stderr.split())


def test_the_result_is_rendered_and_decides_the_exit_code(made: click.Command) -> None:
    found = CliRunner().invoke(made, ["m", "x", "-o", "out"])
    assert (found.exit_code, found.stdout) == (0, "m: True\n")
    assert found.stderr.startswith("• trying")
    failed = CliRunner().invoke(made, ["m", "x", "-o", "out", "--kind", "b", "--json"])
    assert (failed.exit_code, json.loads(failed.stdout)) == (1, {"passed": False})


def test_a_secret_comes_from_the_environment_and_is_no_option(made: click.Command, monkeypatch) -> None:
    monkeypatch.setenv("TRY_SECRET", "sesame")
    assert CliRunner().invoke(made, ["m", "x", "-o", "out"]).exit_code == 0
    assert GIVEN.pop()["secret"] == "sesame"
    assert "secret" not in CliRunner().invoke(made, ["--help"]).output


def test_the_page_has_the_docstring_without_its_sections(made: click.Command) -> None:
    page = CliRunner().invoke(made, ["--help"]).output
    assert "Try it." in page
    assert "Exit codes: 0 tried." in page
    assert "Args" not in page
