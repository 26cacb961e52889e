"""Options that several commands have, said in the same words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from adapter_export.errors import OutputExistsError

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
"""A path; whether it is there is said by the reader, in the words of `errors.py`."""


def json_option(command: Command) -> Command:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Write one JSON document to stdout.")(command)


def force_option(command: Command) -> Command:
    """`--force`."""
    return click.option("--force", is_flag=True, help="Replace what is at the output's place.")(command)


def output_option(what: str) -> Callable[[Command], Command]:
    """`-o / --output`, required."""
    return click.option("-o", "--output", type=PATH, required=True, metavar="PATH", help=f"{what} to write.")


def trust_pickle_option(command: Command) -> Command:
    """`--trust-pickle`."""
    return click.option(
        "--trust-pickle",
        is_flag=True,
        help="Load a model archive that could run code. Only for files that you made yourself.",
    )(command)


def site_map_option(command: Command) -> Command:
    """`--site-map`."""
    return click.option(
        "--site-map",
        type=PATH,
        metavar="FILE",
        help="Sites that override or complete those that are found; `sites --write-site-map` writes such a file.",
    )(command)


def examples(*lines: str) -> str:
    """The end of a help page: examples, kept line by line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def check_free(output: Path, *, force: bool) -> None:
    """Look at the output's place before the work begins; it is looked at again when the work is done.

    Raises:
        OutputExistsError: it is taken, and `force` is not given.
    """
    if os.path.lexists(output) and not force:
        raise OutputExistsError(output)
