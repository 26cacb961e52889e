"""Conversion of errors of third-party parsers to errors of this package."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from adapter_export.errors import AdapterExportError

_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError, LookupError, MemoryError),
    *(OSError, RuntimeError, SyntaxError, TypeError, ValueError),
)
"""Built-in exceptions that parsers raise for broken files, observed or documented."""

_PANIC = "PanicException"
"""Class name of a Rust panic; each library defines its own, not derived from `Exception`."""


class parsing:  # noqa: N801 reads as a statement, like `contextlib.suppress`
    """Convert errors of library parsers in the block to `refusal(reason)`, except errors of this package.

    Covers exception classes of libraries, Rust panics, plain `Exception` (raised by tokenizers), and known built-in
    exceptions. A bug of this package could raise the latter, too, and would be blamed on the file: put only library
    calls into the block.
    """

    def __init__(self, refusal: Callable[[str], AdapterExportError]) -> None:
        self._refusal = refusal

    def __enter__(self) -> None:
        """Enter the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise the refusal instead of the parser's error."""
        if error is not None and not isinstance(error, AdapterExportError) and _is_of_a_parser(error):
            raise self._refusal(reason(error)) from error


def _is_of_a_parser(error: BaseException) -> bool:
    kind = type(error)
    if kind.__module__ == "builtins":
        return isinstance(error, _ERRORS) or kind is Exception
    return isinstance(error, Exception) or kind.__name__ == _PANIC


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
