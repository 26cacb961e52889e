"""Faults of a request's form in words of this server: pydantic's messages name its own types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from adapter_export.errors import RequestError
from adapter_export.tables import number_of, one_line
from adapter_export.words import quoted

_TYPES: Mapping[str, str] = {
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    "model": "an object",
    "none": "null",
}
"""Expected values by the start of pydantic's error types, such as `string_type` and `int_parsing`."""

_BOUNDS: Mapping[str, tuple[str, str]] = {
    "greater_than": ("gt", "more than {}"),
    "greater_than_equal": ("ge", "at least {}"),
    "less_than": ("lt", "less than {}"),
    "less_than_equal": ("le", "at most {}"),
}

_LONGEST = 40
"""Characters of a quoted value."""


def form_error(error: ValidationError, document: object, kind: type[BaseModel]) -> RequestError:
    """Return our error for a document that does not match a model.

    Args:
        error: of pydantic.
        document: the parsed request.
        kind: the model.
    """
    faults = error.errors(include_url=False, include_input=False)
    first = faults[0]
    path, value = _resolved(first["loc"], document)
    where = _place(path)
    what = "the request is not of the expected form"
    if first["type"] == "extra_forbidden":
        known = sorted(kind.model_fields) if len(path) == 1 else []
        return RequestError(what, where=where, found="an unknown field", expected=quoted(known) or None)
    if first["type"] == "missing":
        return RequestError(what, where=_place((*path, first["loc"][-1])), found="no such field")
    same = [fault for fault in faults if _resolved(fault["loc"], document)[0] == path]
    expected = " or ".join(dict.fromkeys(filter(None, map(_expected, same))))
    return RequestError(what, where=where, found=_shown(value), expected=expected or "another value")


def _place(path: Sequence[str | int]) -> str | None:
    return ".".join(map(str, path)) or None


def _resolved(location: Sequence[str | int], document: object) -> tuple[tuple[str | int, ...], object]:
    """Return the part of a location that exists in the document, without names of types, and the value there."""
    path, value = list[str | int](), document
    for step in location:
        if isinstance(value, Mapping) and step in value:
            value = value[str(step)]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            continue
        path.append(step)
    return tuple(path), value


def _expected(fault: Mapping[str, Any]) -> str | None:
    """Return the expected value of one fault; `None` if it is of an unknown kind."""
    kind, facts = str(fault["type"]), fault.get("ctx", {})
    if kind == "missing":
        return f"an object with `{fault['loc'][-1]}`"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return words.format(facts[name])
    lengths: Mapping[str, Callable[[], str]] = {
        "string_too_long": lambda: f"at most {number_of(facts['max_length'], 'character')}",
        "string_too_short": lambda: f"at least {number_of(facts['min_length'], 'character')}",
        "too_long": lambda: f"at most {number_of(facts['max_length'], 'entry', 'entries')}",
        "too_short": lambda: f"at least {number_of(facts['min_length'], 'entry', 'entries')}",
        "literal_error": lambda: str(facts["expected"]).replace("'", "`"),
        "finite_number": lambda: "a finite number",
    }
    return lengths[kind]() if kind in lengths else _TYPES.get(kind.partition("_")[0])


def _shown(value: object) -> str:
    """Return a value of a request in a few characters."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return f"a list of {number_of(len(value), 'entry', 'entries')}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the string `{one_line(value, _LONGEST)}`"
    return one_line(value, _LONGEST)
