"""The description of a command, and the screen that its rendering writes to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from adapter_export.option import Option, OptionsOf
from adapter_export.tables import Table

Found = TypeVar("Found")

Styled = tuple[str, str]
"""A text and its style on a terminal, such as `bold` or `red`."""


class Screen(Protocol):
    """Receives the rendering of a result: the result itself on stdout, remarks on stderr."""

    @property
    def given(self) -> Mapping[str, Any]:
        """The arguments of the call by the names of its parameters; options that were not given are absent."""

    @property
    def notes(self) -> Sequence[str]:
        """The notes that the call has reported, worded for the command line."""

    def show(self, *parts: Table | str) -> None:
        """Write tables and titles to stdout, an empty line after each table."""

    def line(self, *parts: str | Styled) -> None:
        """Write one line to stdout."""

    def write(self, text: str) -> None:
        """Write text to stdout, with line ends of its own."""

    def say(self, text: str) -> None:
        """Write a remark to stderr."""

    def warn(self, text: str) -> None:
        """Write a warning to stderr."""

    def fail(self, text: str) -> None:
        """Write a failure to stderr, marked as such."""


def result_document(found: Any, _: Screen) -> Mapping[str, object]:
    """Return the `to_json()` of a result."""
    document: Mapping[str, object] = found.to_json()
    return document


def always(_: object) -> bool:
    """Accept any result."""
    return True


def exit_1(_: object) -> int:
    """Return 1, the exit code of most results that did not pass."""
    return 1


@dataclass(frozen=True)
class Command(Generic[Found]):
    """A public call as a command of `adapter-export`.

    Positional parameters of the call are arguments of the command; those annotated with an `Option` that has flags, and
    annotated keyword parameters, are options. `reporter` receives the terminal's reporter. Parameters without an
    annotation of theirs, such as callbacks, are for Python callers.

    Attributes:
        call: the public call. Its docstring, up to the first section such as `Args:`, is the help page.
        show: renders a result for people.
        examples: command lines at the end of the help page.
        document: renders a result as JSON, for `--json`.
        passed: false exits with `exit_code`.
        exit_code: the exit code of a result that did not pass.
        exit_codes: their meanings, on the help page.
        sections: names of parameters by section, where a help page is long, or the classes that declare them; all
            others are on every page.
        common: parameters in sections that are on the first page, too.
        live: the parameter that receives a callback, for a call whose results are shown before it returns.
        instead: flags, by name, that run another call with the arguments that it takes.
    """

    call: Callable[..., Found | None]
    show: Callable[[Found, Screen], None]
    examples: Sequence[str]
    document: Callable[[Found, Screen], Mapping[str, object]] = result_document
    passed: Callable[[Found], bool] = always
    exit_code: Callable[[Found], int] = exit_1
    exit_codes: str = ""
    sections: Mapping[str, Sequence[str | OptionsOf]] = field(default_factory=dict)
    common: Collection[str] = ()
    live: str | None = None
    instead: Mapping[str, Instead] = field(default_factory=dict)


@dataclass(frozen=True)
class Instead:
    """A flag of a command that runs another call.

    Attributes:
        option: of the flag.
        command: the other call and its rendering.
        refusal: the error, where an argument is given that the other call does not take.
    """

    option: Option
    command: Command[Any]
    refusal: str
