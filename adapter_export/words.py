"""Texts that name arguments and calls, for two readers: a caller in Python and a user of the command line.

A Python caller passes an argument, a shell user an option. `argument` and `command` return `Words`, which hold the name
as data: `str` shows `force=True`, `sentence("shell")` shows `--force`. Build texts with names by `+` and `joined`: an
f-string or `str.join` would keep only Python's wording, and `tests/test_words.py` refuses it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Literal, get_args, overload

Face = Literal["python", "shell"]
"""The reader of a message: a caller in Python, or a user of the command line."""

_JOINERS = "\u200c\u200d"
"""Zero-width characters that scripts and emoji need."""


@dataclass(frozen=True)
class Argument:
    """An argument named in a text: `force=True` to a Python caller, `--force` to a shell user; see `argument`."""

    name: str
    value: Any = None
    option: str | None = None
    words: str | None = None

    def sentence(self, face: Face = "python") -> str:
        """Return the name in the wording of one face, with terminal controls escaped."""
        if face == "python":
            value = repr(self.value) if isinstance(self.value, bool) else json.dumps(self.value, ensure_ascii=False)
            return _escaped(f"`{self.name}`" if self.value is None else f"`{self.name}={value}`")
        words = self.words
        if words is None and self.value is not None and self.value is not True:
            words = ",".join(map(str, self.value)) if isinstance(self.value, list | tuple) else str(self.value)
        flag = f"--{(self.option or self.name).replace('_', '-')}"
        return _escaped(f"`{flag}`" if words is None else f"`{flag} {words}`")


@dataclass(frozen=True)
class Call:
    """A call named in a text, and the command line that does the same; see `command`."""

    call: str
    line: str

    def sentence(self, face: Face = "python") -> str:
        """Return the call or the command line, with terminal controls escaped."""
        return _escaped(f"`{self.call}`" if face == "python" else f"`adapter-export {self.line}`")


class Words(str):
    """A text for users that holds the arguments and calls that it names as data.

    The value is Python's wording; `sentence` returns either. `+`, `joined`, `edited`, `rstrip`, `capitalized` and
    `visible` keep the names; every other operation of `str` returns Python's wording as plain text.

    Args:
        texts: the parts, joined without a separator; those of `Words` are taken over.

    Attributes:
        parts: plain texts and names, alternating where possible.
    """

    parts: tuple[str | Argument | Call, ...]

    def __new__(cls, *texts: str | Argument | Call) -> Words:
        """Join the parts."""
        parts: list[str | Argument | Call] = []
        for part in chain.from_iterable(text.parts if isinstance(text, Words) else (text,) for text in texts):
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part
            elif part != "":
                parts.append(part)
        words = super().__new__(cls, "".join(map(worded, parts)))
        words.parts = tuple(parts)
        return words

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle and copy the text by its parts."""
        return Words, self.parts

    def __add__(self, other: str) -> Words:
        return Words(self, other)

    def __radd__(self, other: str) -> Words:
        return Words(other, self)

    def sentence(self, face: Face = "python") -> str:
        """Return the text in the wording of one face."""
        return "".join(worded(part, face) for part in self.parts)

    def edited(self, edit: Callable[[str], str]) -> Words:
        """Return a copy whose plain parts are edited."""
        return Words(*(edit(part) if isinstance(part, str) else part for part in self.parts))

    def rstrip(self, characters: str | None = None, /) -> Words:
        """Strip trailing characters; a name at the end is kept."""
        *start, end = self.parts or ("",)
        return Words(*start, end.rstrip(characters) if isinstance(end, str) else end)

    def capitalized(self) -> Words:
        """Return a copy with its first letter in upper case; a name at the start is kept."""
        start, *rest = self.parts or ("",)
        return Words(start[:1].upper() + start[1:] if isinstance(start, str) else start, *rest)

    def to_json(self) -> list[object]:
        """Return the parts for another process; `words_of` reads them."""
        return [part if isinstance(part, str) else asdict(part) for part in self.parts]


def argument(name: str, value: object = None, *, option: str | None = None, words: str | None = None) -> Words:
    """Name an argument in a message: `force=True` to a Python caller, `--force` to a shell user.

    Args:
        name: the argument.
        value: the value to pass. Default: only the name is shown.
        option: the option, if its name differs.
        words: the text after the option, if it differs from the value.
    """
    return Words(Argument(name, value, option, words))


def command(call: str, line: str) -> Words:
    """Name a call in a message, such as `capture(FOLDER, "model.pt")`, and the command line that does the same."""
    return Words(Call(call, line))


def joined(texts: Iterable[str], separator: str = ", ") -> Words:
    """Join texts as `separator.join` does, with the names that they hold."""
    listed = list(texts)
    return Words(*(part for text in listed[:-1] for part in (text, separator)), *listed[-1:])


def words_of(parts: Iterable[Any]) -> Words:
    """Return a text from the parts that `Words.to_json` wrote."""
    return Words(
        *(part if isinstance(part, str) else Argument(**part) if "name" in part else Call(**part) for part in parts)
    )


def worded(text: object, face: Face = "python") -> str:
    """Return a text in the wording of one face; other values are written with `str`."""
    return text.sentence(face) if isinstance(text, Words | Argument | Call) else str(text)


def quoted(names: Iterable[object]) -> str:
    """Format names for a message: `a`, `b`."""
    return ", ".join(f"`{name}`" for name in names)


def nearest(name: str, known: Iterable[str], alike: float = 0.6) -> str | None:
    """Return the known name closest to `name`, ignoring case; `None` if no similarity reaches `alike`, 0 to 1."""
    from difflib import get_close_matches  # noqa: PLC0415 - for wrong names only

    by_case = {one.casefold(): one for one in known}
    near = get_close_matches(name.casefold(), by_case, 1, alike)
    return by_case[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return a fix for an unknown name: the closest known name, if any, then another way out.

    Args:
        name: the unknown name.
        known: the valid names.
        otherwise: an imperative clause.
    """
    near = nearest(name, known)
    return otherwise if near is None else f"did you mean `{near}`? If not, " + otherwise


@overload
def visible(text: Words) -> Words: ...


@overload
def visible(text: str) -> str: ...


def visible(text: str) -> str:
    """Escape terminal controls and bidirectional marks of an untrusted text.

    They could disguise the text. Line breaks and tabs are kept.
    """
    return text.edited(_escaped) if isinstance(text, Words) else _escaped(text)


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in f"\n\t{_JOINERS}" else one.encode("unicode_escape").decode("ascii")
        for one in text
    )


def length_of(text: str | Argument | Call) -> int:
    """Return the length of a text, in its longer wording."""
    return max(len(worded(text, face)) for face in get_args(Face))


def shortened(text: Words, most: int) -> Words:
    """Truncate a text to `most` characters in either wording, and append its length."""
    length = length_of(text)
    if length <= most:
        return text
    ending, parts = f"… ({length} characters)", list[str | Argument | Call]()
    room = most - len(ending)
    for part in text.parts:
        if length_of(part) > room:
            parts += [part[:room]] if isinstance(part, str) else []
            break
        parts.append(part)
        room -= length_of(part)
    return Words(*parts, ending)
