"""The description of a command, and the screen that its rendering writes to."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from adapter_export.option import Option, OptionsOf
from adapter_export.tables import Table
from adapter_export.words import Words

Outcome = TypeVar("Outcome")

Styled = tuple[str, str]
"""Text and its terminal style, such as `bold` or `red`."""


class Screen(Protocol):
    """Output of a command: results to stdout, remarks to stderr."""

    @property
    def given(self) -> Mapping[str, Any]:
        """Arguments of the call by parameter name, without omitted options."""

    @property
    def verbose(self) -> bool:
        """True with `--verbose`."""

    @property
    def notes(self) -> Sequence[str]:
        """Notes reported by the call, worded for the command line."""

    def show(self, *parts: Table | str) -> None:
        """Write tables and titles to stdout, with an empty line after each table."""

    def line(self, *parts: str | Styled) -> None:
        """Write one line to stdout."""

    def write(self, text: str) -> None:
        """Write text to stdout without adding a line end."""

    def report(self, text: str) -> None:
        """Write a remark to stderr."""

    def warn(self, text: str) -> None:
        """Write a warning to stderr."""

    def fail(self, text: str) -> None:
        """Write a failure to stderr."""


def next_line(*words: object) -> str:
    """Return a command line that a shell can run, for `Next:` lines."""
    return shlex.join(["adapter-export", *map(str, words)])


def result_document(result: Any, _: Screen) -> Mapping[str, object]:
    """Return the `to_json()` of a result."""
    document: Mapping[str, object] = result.to_json()
    return document


def always(_: object) -> bool:
    """Treat every result as passed."""
    return True


def exit_1(_: object) -> int:
    """Return 1, the exit code of a result that did not pass."""
    return 1


@dataclass(frozen=True)
class Command(Generic[Outcome]):
    """A public call exposed as a command of `adapter-export`.

    Positional parameters of the call are arguments of the command; those annotated with an `Option` that has flags, and
    annotated keyword parameters, are options. `reporter` receives the terminal's reporter. Unannotated parameters, such
    as callbacks, exist in Python only.

    Attributes:
        call: the public call. Its docstring, up to the first section such as `Args:`, is the help page.
        show: renders a result for people.
        examples: command lines at the end of the help page.
        document: renders a result as JSON, for `--json`.
        passed: returns False for a result that exits with `exit_code`.
        exit_code: the exit code of a result that did not pass.
        exit_codes: their meanings, on the help page.
        sections: parameter names, or classes that declare them, by section of a long help page; all others are on
            every page.
        common: parameters of sections that also appear on the first page.
        live: the parameter for a callback that shows results before the call returns.
        instead: flags, by name, that run another call with the arguments it accepts.
        moved: calls to make instead, by the name of an option that the command no longer has.
        verbose: help of `--verbose`, for a command that shows less by default; empty for no such flag.
    """

    call: Callable[..., Outcome | None]
    show: Callable[[Outcome, Screen], None]
    examples: Sequence[str]
    document: Callable[[Outcome, Screen], Mapping[str, object]] = result_document
    passed: Callable[[Outcome], bool] = always
    exit_code: Callable[[Outcome], int] = exit_1
    exit_codes: str = ""
    sections: Mapping[str, Sequence[str | OptionsOf]] = field(default_factory=dict)
    common: Collection[str] = ()
    live: str | None = None
    instead: Mapping[str, Instead] = field(default_factory=dict)
    moved: Mapping[str, Words] = field(default_factory=dict)
    verbose: str = ""


@dataclass(frozen=True)
class Instead:
    """A flag that makes a command run another call.

    Attributes:
        option: the flag's option.
        command: the other call and its rendering.
        refusal: the error for an argument that the other call does not accept.
    """

    option: Option
    command: Command[Any]
    refusal: str
