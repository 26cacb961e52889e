"""Cells of a table of labelled rows, read strictly as what a task type wants of them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from typing import Any

from adapter_export.errors import DataError

SEPARATOR = "|"
"""Separates the labels of a text, or the choices of a question, in one string."""

_SHOWN = 60
_NAMED = 5

_EDGES = re.compile("^[\\s{0}]+|[\\s{0}]+$".format("\u00ad\u061c\u180e\u200b-\u200f\u2060\ufeff"))
"""White space, soft hyphens, zero-width signs and byte order marks at the ends of a text.

Not every sign without a width: flags end with some that tell them apart.
"""

_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Signs that Unicode counts as letters, marks or symbols, and that fonts draw as nothing."""

Found = tuple[Any, Any, Any] | None
"""A text, a second one if the row has two, and its answer; `None` if the row is incomplete."""


@dataclass(frozen=True)
class Cells:
    """Cells of a row by their roles.

    Attributes:
        text: the text, or the path of an image or audio file.
        pair: the second text.
        label: the answer; `None` without a column of answers.
        start: first character of a span.
        paired: true if the table has a column of second texts.
        where: names the row in messages.
        negatives: negatives of the row's text.
    """

    text: Any
    pair: Any
    label: Any
    start: Any
    paired: bool
    where: str
    negatives: tuple[Any, ...] = ()

    def with_answer(self, answer: Any) -> Found:
        """Return the texts with an answer; `None` if a text or the answer is missing."""
        return self.complete(text_cell(self.text), text_cell(self.pair) if self.paired else None, answer)

    def documents(self) -> tuple[str, ...] | None:
        """Return the second text and the negatives; `None` if one is missing.

        Raises:
            DataError: the second text is also a negative.
        """
        texts = tuple(map(text_cell, (self.pair, *self.negatives)))
        if None in texts:
            return None
        positive, *negatives = map(str, texts)
        if positive in negatives:
            raise DataError("a positive is its own negative", where=self.where, found=f"`{short(positive)}`")
        return positive, *negatives

    def complete(self, text: Any, pair: Any, answer: Any) -> Found:
        """Return the three; `None` if one that the table has is missing."""
        missing = text is None or answer is None or (self.paired and pair is None)
        return None if missing else (text, pair, answer)


def some(values: Collection[object], quote: str = "`") -> str:
    """Return the first few of many values for a message, each quoted and cut to a readable length."""
    shown = [f"{quote}{short(value)}{quote}" for value in islice(values, _NAMED)]
    return ", ".join(shown) + (f", … ({len(values):,} in all)" if len(values) > _NAMED else "")


def short(value: object) -> str:
    """Return a value for a message, cut to a readable length."""
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def is_blank(text: str) -> bool:
    """Return true if a text contains only white space, zero-width characters and byte order marks."""
    return all(
        character.isspace()
        or character in _FILLERS
        or unicodedata.category(character) in ("Cc", "Cf")
        or "\ufe00" <= character <= "\ufe0f"
        for character in text
    )


def trimmed(text: str) -> str:
    """Return a text without white space and zero-width signs at its ends."""
    return _EDGES.sub("", text)


def text_cell(cell: object) -> str | None:
    """Return a text, or `None` for an empty cell."""
    return cell if isinstance(cell, str) and not is_blank(cell) else None


def words(cell: object, where: str) -> tuple[str, ...] | None:
    """Return the words of a text: a list, or one string with spaces between them."""
    words_found = cell.split() if isinstance(cell, str) else cell
    if words_found is None or words_found == []:
        return None
    if not isinstance(words_found, list) or not all(isinstance(word, str) and word for word in words_found):
        raise DataError("holds no words", where=where, found=f"`{short(cell)}`", expected="a list of words")
    return None if all(map(is_blank, words_found)) else tuple(words_found)


def label(cell: object, where: str) -> str | None:
    """Return a label as text, or `None` for an empty cell, which some tables spell NaN."""
    if cell is None or cell != cell:
        return None
    if not isinstance(cell, str | int | float):
        raise DataError("a label is not a word or a number", where=where, found=type(cell).__name__)
    text = trimmed(str(cell))
    return None if is_blank(text) or text.lower() == "nan" else text


def labels(cell: object, where: str) -> tuple[str, ...] | None:
    """Return the labels of words: a list, or one string with spaces between them."""
    names = cell.split() if isinstance(cell, str) else cell
    if names is None or names == [] or names != names:
        return None
    if not isinstance(names, list):
        raise DataError("holds no labels of words", where=where, found=f"`{short(cell)}`", expected="a list of labels")
    named = [label(name, where) for name in names]
    if None in named:
        raise DataError("a word has no label", where=where, found=f"`{short(cell)}`", expected="a label for each word")
    return tuple(str(name) for name in named)


def label_set(cell: object, where: str) -> frozenset[str] | None:
    """Return the labels of a text, any number of them: a list, or one string with `|` between them.

    An empty list, or the string `|`, is a text without labels; an empty cell has no answer.
    """
    if cell is None or cell != cell or (isinstance(cell, str) and is_blank(cell)):
        return None
    names = [part for part in cell.split(SEPARATOR) if not is_blank(part)] if isinstance(cell, str) else cell
    if not isinstance(names, list):
        expected = f"a list of labels, or one string with `{SEPARATOR}` between them"
        raise DataError("holds no set of labels", where=where, found=f"`{short(cell)}`", expected=expected)
    named = [label(name, where) for name in names]
    twice = len(set(named)) < len(named)
    if None in named or twice:
        fault = "a label occurs twice in a set" if twice else "a set has an empty label"
        raise DataError(fault, where=where, found=f"`{short(cell)}`", expected="different labels")
    return frozenset(str(name) for name in named)


def numbers(cell: Any, where: str) -> tuple[float, ...] | None:
    """Return numbers from one, a list, or a string separated by spaces; `None` for an empty cell or a NaN."""
    parts = cell.split() if isinstance(cell, str) else cell if isinstance(cell, list) else [cell]
    if parts in ([], [None]):
        return None
    wanted = "a number, or a list"
    try:
        values = tuple(float(part) for part in parts if not isinstance(part, bool))
    except (TypeError, ValueError) as error:
        raise DataError("holds no numbers", where=where, found=f"`{short(cell)}`", expected=wanted) from error
    if len(values) != len(parts) or any(math.isinf(number) for number in values):
        raise DataError("holds no finite numbers", where=where, found=f"`{short(cell)}`", expected=wanted)
    return None if any(math.isnan(number) for number in values) else values


def choices(cell: object, where: str) -> tuple[str, ...] | None:
    """Return the choices of a question: a list, or one string with `|` between them."""
    if cell is None or (isinstance(cell, str) and is_blank(cell)):
        return None
    options = [trimmed(part) for part in cell.split(SEPARATOR)] if isinstance(cell, str) else cell
    texts = isinstance(options, list) and all(map(text_cell, options))
    if not isinstance(options, list) or not texts or len(options) < 2 or len(set(options)) < len(options):
        expected = f"two or more different texts: a list, or one string with `{SEPARATOR}` between them"
        raise DataError("holds no choices", where=where, found=f"`{short(cell)}`", expected=expected)
    return tuple(options)
