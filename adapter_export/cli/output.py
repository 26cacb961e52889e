"""How the commands talk: results to stdout, progress and errors to stderr, bars for people and plain lines for logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import click
import rich.table
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn
from rich.segment import Segment
from rich.text import Text

from adapter_export.errors import Note, visible, worded
from adapter_export.tables import Table
from adapter_export.tables import size as size

_PLAIN_WIDTH = 160
_VERDICTS = {"passed": "green", "pass": "green", "failed": "bold red", "FAIL": "bold red"}
_SECONDS_BETWEEN_PLAIN_LINES = 10.0


class _Console(Console):
    """A console on which text of others cannot steer the terminal: signs that could are shown as escapes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render as `Console` does."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout, for results, or on stderr, for everything else."""
    found = _Console(stderr=stderr, highlight=False, soft_wrap=False)
    return found if found.is_terminal else _Console(stderr=stderr, highlight=False, width=_PLAIN_WIDTH)


def emit_json(document: Mapping[str, object], *, indent: int | None = 2) -> None:
    """Write a JSON document to stdout, in which signs that could steer a terminal are escapes; no `indent`: a line."""
    from adapter_export.format.files import printable_json

    click.echo(printable_json(document, indent=indent))


def say(message: str) -> None:
    """Write a line for the user to stderr."""
    click.echo(visible(message), err=True)


def warn(message: str) -> None:
    """Write a warning to stderr."""
    _say_marked("warning:", "yellow", message)


def warn_of(note: Note) -> None:
    """Write what the caller of a call should know to stderr."""
    warn(f"{note.sentence('shell')}.")


def say_failed(message: str) -> None:
    """Write what is not as it should be to stderr."""
    _say_marked("failed:", "red", message)


def _say_marked(mark: str, colour: str, message: str) -> None:
    click.echo(f"{click.style(mark, fg=colour, bold=True)} {visible(message)}", err=True)


def shown(found: Table) -> rich.table.Table:
    """Return a table of the API as one for `console().print`: markup is left as it is, and verdicts are in colour."""
    made = rich.table.Table(
        title=None if found.title is None else Text(found.title, style="bold"),
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
    )
    for index, column in enumerate(found.columns):
        made.add_column(column, justify="right" if found.numbers[index : index + 1] == "r" else "left", overflow="fold")
    for row in found.rows:
        made.add_row(*(Text(worded(str(cell), "shell"), _VERDICTS.get(str(cell), "")) for cell in row))
    return made


def show(*parts: Table | str) -> None:
    """Write tables of the API to stdout, and titles between them."""
    out, before = console(), None
    for part in parts:
        if isinstance(before, Table):
            out.print()
        out.print(Text(part, style="bold") if isinstance(part, str) else shown(part), soft_wrap=isinstance(part, str))
        before = part


class TerminalScreen:
    """Renders the result of a command: results to stdout, remarks to stderr.

    Attributes:
        given: the arguments of the call by the names of its parameters.
        notes: what the call has reported, worded for the command line.
    """

    def __init__(self, given: Mapping[str, Any], notes: Sequence[str]) -> None:
        self.given, self.notes = given, notes

    def show(self, *parts: Table | str) -> None:
        """Write tables and titles to stdout, an empty line after each table."""
        show(*parts)

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Write one line to stdout."""
        console().print(Text.assemble(*parts), soft_wrap=True)

    def say(self, text: str) -> None:
        """Write a remark to stderr."""
        say(text)

    def warn(self, text: str) -> None:
        """Write a warning to stderr."""
        warn(text)

    def fail(self, text: str) -> None:
        """Write a failure to stderr, marked as such."""
        say_failed(text)


class Bar:
    """A bar that grows; `progress` redraws it on a terminal, without one it is a plain line every ten seconds."""

    def __init__(self, description: str, total: int, progress: Progress | None) -> None:
        self._description, self._note = description, ""
        self._total, self._done = total, 0
        self._started = self._written = time.monotonic()
        self._progress = progress
        self._task = None if progress is None else progress.add_task(description, total=total, note="")

    @property
    def finished(self) -> int:
        """The number of finished steps."""
        return self._done

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Add steps; `note` stands at the end of the line, such as `loss 0.312`."""
        self._done += steps
        self._note = note or self._note
        if self._progress is None and time.monotonic() - self._written >= _SECONDS_BETWEEN_PLAIN_LINES:
            self.write()
        self._redraw()

    def describe(self, description: str) -> None:
        """Change what stands before the bar."""
        self._description = description
        self._redraw()

    def _redraw(self) -> None:
        if self._progress is not None and self._task is not None:
            text = self._description
            self._progress.update(self._task, description=text, completed=self._done, note=self._note)

    def write(self) -> None:
        """Write it as a plain line."""
        self._written = time.monotonic()
        elapsed = self._written - self._started
        left = elapsed / self._done * (self._total - self._done) if self._done else 0.0
        when = f"{duration(left)} left" if self._done < self._total else f"in {duration(elapsed)}"
        texts = (self._description, f"{self._done}/{self._total}", when, self._note)
        say("  ".join(text for text in texts if text))


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Bar]:
    """Show a bar on stderr with the time left: redrawn on a terminal, otherwise one plain line every ten seconds."""
    target = console(stderr=True)
    if not target.is_terminal:
        bar = Bar(description, total, None)
        yield bar
        bar.write()
        return
    counts = MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeLeftColumn()
    columns = TextColumn("{task.description}"), BarColumn(bar_width=30), *counts, TextColumn("{task.fields[note]}")
    with Progress(*columns, console=target) as progress:
        yield Bar(description, total, progress)


def duration(seconds: float) -> str:
    """Return seconds as a person reads them: `0.4 s`, `12 s`, `2:05`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 60 else f"{int(seconds // 60)}:{int(seconds % 60):02d}"


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Show long work in named steps: call what is yielded with each step's name as it begins.

    On a terminal the running step has a spinner; otherwise each step is one line, written when it ends.
    """
    target, running = console(stderr=True), list[tuple[str, float]]()

    def end() -> None:
        for name, began in running:
            took = duration(time.monotonic() - began)
            target.print(Text.assemble("• ", name, (f"  {took}", "dim")), soft_wrap=True)
        running.clear()

    with target.status("…") if target.is_terminal else nullcontext() as status:

        def begin(name: str) -> None:
            end()
            running.append((name, time.monotonic()))
            if status is not None:
                status.update(name)

        yield begin
        end()
