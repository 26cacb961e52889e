"""Refuse code of the package that turns `Words` into plain text by accident, which would lose the shell's wording."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from adapter_export.words import Words

_FLATTENING = (
    *("__format__", "__getitem__", "__mod__", "__mul__", "capitalize", "center", "expandtabs", "format", "format_map"),
    *("join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rjust"),
    *("rpartition", "rsplit", "split", "splitlines", "strip", "swapcase", "title", "translate", "upper", "zfill"),
)
"""Operations of `str` whose result has Python's wording only. `str.join` of Words cannot be caught here."""


class FlattenedWordsError(AssertionError):
    """The package formatted or changed a text with names as if it were plain."""


def _refusing(name: str) -> Callable[..., Any]:
    plain = getattr(str, name)

    def operation(words: Words, *arguments: Any, **options: Any) -> Any:
        caller = sys._getframe(1)
        module = caller.f_globals.get("__name__", "")
        if module.startswith("adapter_export") and words.sentence("shell") != words.sentence():
            place = f"{module}, line {caller.f_lineno}"
            raise FlattenedWordsError(f"{place}: `{name}` loses the option of {str(words)!r}; use `+` or `joined`")
        return plain(words, *arguments, **options)

    return operation


def install() -> None:
    """Refuse flattening in this process; `str(words)` and `{words!s}` remain, which are meant."""
    for name in _FLATTENING:
        setattr(Words, name, _refusing(name))
