"""Commands made from signatures: each parameter is what its type, its default and its annotation say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, Unpack

import click
import pytest
from click.testing import CliRunner

from adapter_export.cli.options import Force, Json, check_together, command
from adapter_export.errors import UsageError
from adapter_export.option import Option

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.graph.kinds import Kind


class More(TypedDict, total=False):
    """Options that may be left out."""

    rank: Annotated[float | Mapping[str, float], "The rank."]
    gate: Annotated[bool, "A gate."]
    scaling: Annotated[float | Literal["learned", "channel"], "The factor."]


def call(
    base: np.ndarray,
    *,
    kind: Annotated[str | Kind, Option("The kind.", lambda: "[a|b]")] = "a",
    tokens: Annotated[int | None, Option("Most tokens.", "N", least=1)] = None,
    init: Annotated[str | None, Option("The scheme.", choices=lambda: ("normal", "zero"))] = None,
    on_note: Any = None,
    **options: Unpack[More],
) -> None:
    """A call of an API."""


@pytest.fixture
def given() -> dict[str, Any]:
    return {}


@pytest.fixture
def made(given: dict[str, Any]) -> click.Command:
    @command("tool try x", like=call)
    def try_(
        model: Path,
        names: Sequence[str],
        *,
        on: Annotated[tuple[str, ...], "Linear layers."] = (),
        weights: Annotated[tuple[float, ...] | Mapping[str, float] | None, "The weights."] = None,
        bake: Annotated[Sequence[str], Option("Constant ones.", "NAME")] = (),
        output: Annotated[Path, Option("The file to write.", "PATH", "-o")],
        force: Force = False,
        as_json: Json = False,
        **options: Any,
    ) -> None:
        """Try it."""
        check_together(apart=[("on", "bake")], needs={"weights": ("on", "are of")})
        given.update(options, model=model, names=names, on=on, weights=weights, bake=bake, output=output)
        given.update(force=force, as_json=as_json)

    return try_


def test_the_help_says_what_the_annotations_say(made: click.Command) -> None:
    found = CliRunner().invoke(made, ["--help"]).output
    lines = [" ".join(line.split()) for line in found.splitlines()]
    assert lines[0] == "Usage: try [OPTIONS] MODEL NAMES..."
    assert [line for line in lines if line.startswith("-")] == [
        "-o, --output PATH The file to write. [required]",
        "--kind [a|b] The kind. [default: a]",
        "--tokens N Most tokens. [x>=1]",
        "--init [normal|zero] The scheme.",
        "--rank N|NAME=N,… The rank.",
        "--gate A gate.",
        "--scaling N|learned|channel The factor.",
        "--on A,B,… Linear layers.",
        "--weights N,…|NAME=N,… The weights.",
        "--bake NAME Constant ones.",
        "--force Replace what is at the output's place.",
        "--json Write one JSON document to stdout.",
        "--config FILE Read options from `[COMMAND]` in a TOML file.",
        "--help Show this message and exit.",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"kind": "a", "on": (), "bake": (), "force": False, "as_json": False, "names": ("x", "y")}),
        (["--on", "a, b", "--gate", "--rank", "8"], {"on": ("a", "b"), "gate": True, "rank": 8}),
        (["--rank", "query=8,value=0.5"], {"rank": {"query": 8, "value": 0.5}}),
        (["--on", "a", "--weights", "1,2.5"], {"weights": (1.0, 2.5)}),
        (["--on", "a", "--weights", "a=1,b=2.5"], {"weights": {"a": 1, "b": 2.5}}),
        (["--bake", "a", "--bake", "b", "--scaling", "learned"], {"bake": ("a", "b"), "scaling": "learned"}),
        (["--json", "--force", "--scaling", "2", "--tokens", "3"], {"as_json": True, "force": True, "scaling": 2.0}),
    ],
)
def test_values_are_what_the_types_say(
    made: click.Command, given: dict[str, Any], words: list[str], expected: dict[str, Any]
) -> None:
    found = CliRunner().invoke(made, ["m", "x", "y", "-o", "out", *words])
    assert found.exit_code == 0, found.output
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
def test_values_that_are_not(made: click.Command, words: list[str], message: str) -> None:
    found = CliRunner().invoke(made, ["m", "x", "-o", "out", *words])
    assert found.exit_code == 2
    assert message in " ".join(found.stderr.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "a", "--bake", "b"], "`--on` and `--bake` do not go together"),
        (["--weights", "1,2"], "`--weights` are of `--on`, which is not given"),
    ],
)
def test_options_that_do_not_go_together(made: click.Command, words: list[str], message: str) -> None:
    found = CliRunner().invoke(made, ["m", "x", "-o", "out", *words])
    assert isinstance(found.exception, UsageError)
    assert message in str(found.exception)
