"""Parsers of others: whatever one of them raises becomes a named error."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from adapter_export.errors import AdapterExportError

_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError, LookupError, MemoryError),
    *(OSError, RuntimeError, SyntaxError, TypeError, ValueError),
)
"""The errors of Python itself that parsers were seen to raise, or raise by their documentation, for broken files."""

_PANIC = "PanicException"
"""The class of a panic of Rust code, which each library has for itself; it is no `Exception`."""


class parsing:  # noqa: N801 reads as a statement, like `contextlib.suppress`
    """Call the parsers of libraries: what the block raises, errors of this package aside, becomes `refusal(reason)`.

    These are errors of classes that a library defines, panics of Rust code, plain `Exception` (tokenizers raises it),
    and the errors of Python itself that parsers are known to raise. A mistake of our own raises some of the last, too,
    and would be blamed on the file: nothing else than calls of libraries belongs into the block.
    """

    def __init__(self, refusal: Callable[[str], AdapterExportError]) -> None:
        self._refusal = refusal

    def __enter__(self) -> None:
        """Begin the block."""

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
    """Return the first line of what a library says, or the name of the error where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
