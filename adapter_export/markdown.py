"""Markdown that quotes untrusted text, such as names and labels, without letting it act as markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from adapter_export.words import visible

_MOST_LABELS = 60
_MOST_CHARACTERS = 200


def escaped(text: object) -> str:
    """Escape untrusted text for one line of Markdown, truncated to 200 characters."""
    plain = visible(" ".join(str(text).split()))
    if len(plain) > _MOST_CHARACTERS:
        plain = f"{plain[:_MOST_CHARACTERS]}…"
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#!|~$:@]|(?<=www)\.)", r"\\\1", plain)


def labels_cell(labels: Sequence[str]) -> str:
    """Format up to 60 labels for a table cell."""
    more = f" and {len(labels) - _MOST_LABELS} more" if len(labels) > _MOST_LABELS else ""
    return ", ".join(map(escaped, labels[:_MOST_LABELS])) + more


def table_lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table; the cells must be escaped."""
    yield f"| {' | '.join(head)} |"
    yield f"|{('-' * 3 + '|') * len(head)}"  # a literal rule would look like an option
    for row in rows:
        yield f"| {' | '.join(row)} |"
