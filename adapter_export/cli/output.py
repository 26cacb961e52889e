"""How the commands talk: results to stdout, progress and errors to stderr, bars for people and plain lines for logs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Protocol

import click
import rich.table
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn
from rich.text import Text

from adapter_export.tables import Table
from adapter_export.tables import size as size

_PLAIN_WIDTH = 160
_VERDICTS = {"passed": "green", "pass": "green", "failed": "bold red", "FAIL": "bold red"}
_SECONDS_BETWEEN_PLAIN_LINES = 10.0


def console(*, stderr: bool = False) -> Console:
    """A console on stdout, for results, or on stderr, for everything else."""
    found = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=_PLAIN_WIDTH)


def emit_json(document: Mapping[str, object]) -> None:
    """Write one JSON document to stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=_plain))


def _plain(value: object) -> object:
    """Tuples are lists already; paths and NumPy scalars become what JSON knows."""
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)


def say(message: str) -> None:
    """Write a line for the user to stderr."""
    click.echo(message, err=True)


def warn(message: str) -> None:
    """Write a warning to stderr."""
    click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {message}", err=True)


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
        made.add_row(*(Text(str(cell), _VERDICTS.get(str(cell), "")) for cell in row))
    return made


def show(*parts: Table | str) -> None:
    """Write tables of the API to stdout, and titles between them."""
    out, before = console(), None
    for part in parts:
        if isinstance(before, Table):
            out.print()
        out.print(Text(part, style="bold") if isinstance(part, str) else shown(part), soft_wrap=isinstance(part, str))
        before = part


class Bar(Protocol):
    """A bar that grows."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Add steps; `note` stands at the end of the line, such as `loss 0.312`."""

    def describe(self, description: str) -> None:
        """Change what stands before the bar."""


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Bar]:
    """A bar on stderr with the time left: redrawn on a terminal, elsewhere one plain line every ten seconds.

    Args:
        description: what is being done.
        total: the number of steps.
    """
    target = console(stderr=True)
    if not target.is_terminal:
        bar = _PlainBar(description, total)
        yield bar
        bar.finish()
        return
    with _columns(target) as progress:
        yield _TerminalBar(progress, progress.add_task(description, total=total, note=""))


def _columns(target: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeLeftColumn(),
        TextColumn("{task.fields[note]}"),
        console=target,
    )


class _TerminalBar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, steps: int = 1, note: str = "") -> None:
        if note:
            self._progress.update(self._task, note=note)
        self._progress.update(self._task, advance=steps)

    def describe(self, description: str) -> None:
        self._progress.update(self._task, description=description)


class _PlainBar:
    def __init__(self, description: str, total: int) -> None:
        self._description = description
        self._total = total
        self._done = 0
        self._note = ""
        self._started = self._written = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        self._note = note or self._note
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_PLAIN_LINES:
            self._write()

    def describe(self, description: str) -> None:
        self._description = description

    def finish(self) -> None:
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        elapsed = self._written - self._started
        left = elapsed / self._done * (self._total - self._done) if self._done else 0.0
        when = f"{duration(left)} left" if self._done < self._total else f"in {duration(elapsed)}"
        say("  ".join(part for part in (self._description, f"{self._done}/{self._total}", when, self._note) if part))


def duration(seconds: float) -> str:
    """Seconds as a person reads them: `0.4 s`, `12 s`, `2:05`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 60 else f"{int(seconds // 60)}:{int(seconds % 60):02d}"


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Long work in named steps: call what is yielded with each step's name as it begins.

    On a terminal the running step has a spinner; elsewhere each step is one line, written when it ends.
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
