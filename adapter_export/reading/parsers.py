"""Parsers of others: whatever one of them raises becomes a named error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapter_export.errors import AdapterExportError

_PANIC = "PanicException"
"""The class of a panic of Rust code, which each library has for itself; it is no `Exception`."""


@contextmanager
def parsing(refusal: Callable[[str], AdapterExportError]) -> Iterator[None]:
    """Call the parsers of libraries: what the block raises, errors of this package aside, becomes `refusal(reason)`.

    Nobody knows all that a parser raises for bytes that no writer wrote: `struct.error`, `RecursionError`,
    `MemoryError` and panics of Rust code were seen. So nothing else than parsing belongs into the block: a mistake of
    our own would be blamed on the file.
    """
    try:
        yield
    except AdapterExportError:
        raise
    except Exception as error:
        raise refusal(reason(error)) from error
    except BaseException as error:
        if type(error).__name__ != _PANIC:  # a user who interrupts
            raise
        raise refusal(reason(error)) from error


def reason(error: BaseException) -> str:
    """Return the first line of what a library says, or the name of the error where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
