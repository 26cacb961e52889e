"""Descriptions of JSON objects and their keys, taken from docstrings."""

from __future__ import annotations

import inspect
import re

_ATTRIBUTE = re.compile(r"^    (\w+(?:, \w+)*): ", re.MULTILINE)


def described(kind: type) -> tuple[str, dict[str, str]]:
    """Return the description of an object and of each of its keys; those of a base class come first."""
    of_keys: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text, _, attributes = (inspect.cleandoc(base.__doc__ or "")).partition("\n\nAttributes:\n")
        pieces = _ATTRIBUTE.split(attributes)[1:]
        for names, said in zip(pieces[::2], pieces[1::2], strict=True):
            sentence = " ".join(said.split())
            of_keys.update(dict.fromkeys(names.split(", "), sentence[:1].upper() + sentence[1:]))
    return " ".join(text.split()), of_keys
