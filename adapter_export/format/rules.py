"""Rules for single values of a manifest: each a function that raises where the value breaks the rule."""

from __future__ import annotations

import re
from collections.abc import Sized

from adapter_export.errors import FormatError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH_PART = re.compile(r"[^\x00-\x1f\x7f/\\:]+")


def check_path(text: str) -> None:
    """A path that stays in its folder on every operating system: `a/b.c`, never `../a`, `/a` or `C:a`."""
    parts = text.split("/")
    if not all(_PATH_PART.fullmatch(part) for part in parts) or {".", ".."} & set(parts):
        raise FormatError(
            "a path that may leave its folder",
            found=f"`{text}`",
            expected="a relative path with `/` between its parts, without `.`, `..`, `:` and `\\`",
        )


def check_sha256(text: str) -> None:
    """64 lower-case hexadecimal digits."""
    if not _SHA256.fullmatch(text):
        raise FormatError("no sha256", found=f"`{text}`", expected="64 lower-case hexadecimal digits")


def check_positive(number: int) -> None:
    """At least 1."""
    if number < 1:
        raise FormatError("a number that is too small", found=number, expected="at least 1")


def check_not_negative(number: float) -> None:
    """At least 0."""
    if number < 0:
        raise FormatError("a number that is too small", found=number, expected="at least 0")


def check_not_empty(values: Sized) -> None:
    """At least one value."""
    if not values:
        raise FormatError("nothing here", expected="at least one value")
