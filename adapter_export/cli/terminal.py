"""Output of commands: results to stdout, remarks and errors to stderr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from adapter_export.cli.fitted_table import fitted
from adapter_export.tables import Table
from adapter_export.words import visible, worded

_PLAIN_WIDTH = 160
"""Columns of a file or a pipe, which have no width: wide enough for most tables."""


class _Console(Console):
    """A console that escapes control characters, so that foreign text cannot control the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render as `Console` does, with control characters escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout for results, or on stderr for everything else."""
    terminal = _Console(stderr=stderr, highlight=False, soft_wrap=False)
    return terminal if terminal.is_terminal else _Console(stderr=stderr, highlight=False, width=_PLAIN_WIDTH)


def emit_json(document: Mapping[str, object]) -> None:
    """Write a JSON document to stdout, with control characters escaped."""
    from adapter_export.format.files import printable_json

    click.echo(printable_json(_in_words(document), indent=2))


def _in_words(value: object) -> object:
    """Return a document whose texts have the wording of the command line."""
    if isinstance(value, str):
        return worded(value, "shell")
    if isinstance(value, Mapping):
        return {key: _in_words(item) for key, item in value.items()}
    return [_in_words(item) for item in value] if isinstance(value, list | tuple) else value


def report(message: str) -> None:
    """Write a line for the user to stderr."""
    click.echo(visible(worded(message, "shell")), err=True)


def warn(message: str) -> None:
    """Write a warning to stderr."""
    _report_marked("warning:", "yellow", message)


def report_failure(message: str) -> None:
    """Write a failure to stderr."""
    _report_marked("failed:", "red", message)


def _report_marked(mark: str, colour: str, message: str) -> None:
    click.echo(f"{click.style(mark, fg=colour, bold=True)} {visible(worded(message, 'shell'))}", err=True)


def show(*parts: Table | str) -> None:
    """Write tables and titles to stdout."""
    out, before = console(), None
    for part in parts:
        if isinstance(before, Table):
            out.print()
        if isinstance(part, str):
            out.print(Text(part, style="bold"), soft_wrap=True)
        else:
            out.print(fitted(part, out.width))
        before = part


class TerminalScreen:
    """Renders the result of a command: results to stdout, remarks to stderr.

    Attributes:
        given: the call's arguments by parameter name.
        notes: notes reported by the call, worded for the command line.
        verbose: True with `--verbose`.
    """

    def __init__(self, arguments: Mapping[str, Any], notes: Sequence[str], verbose: bool) -> None:
        self.given, self.notes, self.verbose = arguments, notes, verbose

    def show(self, *parts: Table | str) -> None:
        """Write tables and titles to stdout, with an empty line after each table."""
        show(*parts)

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Write one line to stdout."""
        console().print(Text.assemble(*parts), soft_wrap=True)

    def write(self, text: str) -> None:
        """Write text to stdout without adding a line end."""
        click.echo(text, nl=False)

    def report(self, text: str) -> None:
        """Write a remark to stderr."""
        report(text)

    def warn(self, text: str) -> None:
        """Write a warning to stderr."""
        warn(text)

    def fail(self, text: str) -> None:
        """Write a marked failure to stderr."""
        report_failure(text)
