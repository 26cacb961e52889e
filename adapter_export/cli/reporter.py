"""Progress and notes on stderr: a spinner or a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.table import Column
from rich.text import Text

from adapter_export.cli.terminal import console, report, warn
from adapter_export.reporting import Percent, Reporter
from adapter_export.tables import duration
from adapter_export.words import worded

_SECONDS_BETWEEN_PLAIN_LINES = 10.0

_BAR, _SHORT_BAR, _WIDE = 30, 12, 100
"""Characters of a bar, of a bar on a narrow terminal, and of the narrowest regular terminal."""


class TerminalReporter(Reporter):
    """Reporter that shows the current step, or a bar if the call counts its steps, and warns about notes.

    Use it as a context manager; its display ends with the block.

    Args:
        title: the text before a bar.

    Attributes:
        notes: notes so far, worded for the command line.
    """

    def __init__(self, title: str) -> None:
        self.notes: list[str] = []
        self._title = title
        self._shown: _Step | _Bar | None = None

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(finished=error is None)

    def end(self, *, finished: bool = True) -> None:
        """End the current step or bar."""
        if self._shown is not None:
            self._shown.close(finished=finished)
            self._shown = None

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:
        """Show a step by name, or advance a bar with a label."""
        shown = self._shown
        if total is not None and isinstance(shown, _Bar) and shown.continues(done, total):
            shown.move(done, label)
            return
        self.end()
        self._shown = _Step(label) if total is None else _Bar(self._title, done, total, label)

    def warn(self, text: str) -> None:
        """Warn about a note, once."""
        sentence = worded(text, "shell")
        if sentence not in self.notes:
            self.notes.append(sentence)
            warn(f"{sentence}.")


class _Step:
    """A named step: a spinner while it runs, then a line with its duration."""

    def __init__(self, label: str) -> None:
        self._label, self._began = label, time.monotonic()
        self._console = console(stderr=True)
        self._status = Status(label, console=self._console) if self._console.is_terminal else None
        if self._status is not None:
            self._status.start()

    def close(self, *, finished: bool) -> None:
        """End the spinner; write the line of a finished step."""
        if self._status is not None:
            self._status.stop()
        if finished:
            took = duration(time.monotonic() - self._began)
            self._console.print(Text.assemble("• ", self._label, (f"  {took}", "dim")), soft_wrap=True)


class _LabelColumn(ProgressColumn):
    """Label of the current step, shortened to the available room."""

    def render(self, task: Task) -> Text:
        """Return the label as one line."""
        return Text(str(task.fields["label"]), no_wrap=True, overflow="ellipsis")


class _CountColumn(MofNCompleteColumn):
    """Finished units of all, or the percentage of units that mean nothing to a reader."""

    def render(self, task: Task) -> Text:
        """Return the count of a bar."""
        if not task.fields.get("percent"):
            return super().render(task)
        return Text(_percentage(int(task.completed), int(task.total or 1)), style="progress.download")


def _percentage(done: int, total: int) -> str:
    return f"{100 * done // max(total, 1):3d} %"


def progress_on(target: Console) -> Progress:
    """Return the columns of a bar: numbers never break, and the bar is short on a narrow terminal."""
    whole = Column(no_wrap=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=_BAR if target.width >= _WIDE else _SHORT_BAR, table_column=whole),
        _CountColumn(table_column=whole),
        TimeElapsedColumn(table_column=whole),
        TextColumn("left"),
        TimeRemainingColumn(table_column=whole),
        _LabelColumn(),
        console=target,
    )


class _Bar:
    """A bar with the time left: redrawn on a terminal, elsewhere one plain line every ten seconds and at the end."""

    def __init__(self, title: str, done: int, total: int, label: str) -> None:
        self._title, self._total, self._done, self._label = title, total, done, label
        self._first = done  # steps of an earlier run do not count toward this run's speed
        self._began = self._written = time.monotonic()
        target = console(stderr=True)
        self._progress: Progress | None = None
        if target.is_terminal:
            self._progress = progress_on(target)
            self._task = self._progress.add_task(
                title, total=total, completed=done, label=label, percent=isinstance(total, Percent)
            )
            self._progress.start()

    def continues(self, done: int, total: int) -> bool:
        """Return True if further steps belong to this bar: the same total, and no step back."""
        return total == self._total and done >= self._done

    def move(self, done: int, label: str) -> None:
        """Show the number of finished steps."""
        self._done, self._label = done, label or self._label
        if self._progress is not None:
            self._progress.update(self._task, completed=done, label=self._label)
        elif time.monotonic() - self._written >= _SECONDS_BETWEEN_PLAIN_LINES:
            self._write()

    def close(self, *, finished: bool) -> None:
        """End the bar."""
        if self._progress is not None:
            self._progress.stop()
        elif finished:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        elapsed, moved = self._written - self._began, self._done - self._first
        left = elapsed / moved * (self._total - self._done) if moved else 0.0
        when = f"{duration(left)} left" if self._done < self._total else f"in {duration(elapsed)}"
        count = f"{self._done}/{self._total}"
        count = _percentage(self._done, self._total).strip() if isinstance(self._total, Percent) else count
        report("  ".join(filter(None, (self._title, count, when, self._label))))
