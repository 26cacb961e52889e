"""Faults of wording in what commands write: a plural after 1, and a sentence that ends twice."""

from __future__ import annotations

import re
from collections.abc import Iterator

_SINGULAR = frozenset(
    ("is", "was", "has", "does", "this", "its", "as", "less", "plus", "bias", "loss", "class", "pass", "status")
)

_AFTER_ONE = re.compile(r"(?:(?<=\s)|(?<=^)|(?<=\())1 ([a-z]+s)\b", re.MULTILINE)

_ENDS = re.compile(r"[?!]`?\.(?:\s|$)|(?<![.\w/])[a-z]+\.\.(?:\s|$)")


def wrong_words(text: str) -> Iterator[str]:
    """Yield places such as `1 rows` and `mean `run`?.`."""
    for found in _AFTER_ONE.finditer(text):
        if found[1] not in _SINGULAR and not found[1].endswith("ss"):
            yield found[0]
    yield from (found[0].strip() for found in _ENDS.finditer(text))
