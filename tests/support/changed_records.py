"""Changes of every field of a record, each as its type allows."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from adapter_export.errors import AdapterExportError
from adapter_export.format.records import OneOf, hints_of

Changes = Iterator[tuple[str, str, Any]]
"""The field, as `Class.field`, a description of the change, and the changed value."""


def changed_records(record: Any) -> Changes:
    """Yield copies of a record, each with one change of one field, of the record itself or of records within it.

    Of a list, the first and the last item are changed; of a mapping, the first value.
    """
    kind = type(record)
    for field in fields(record):
        if not field.init:
            continue
        name, value = f"{kind.__name__}.{field.name}", getattr(record, field.name)
        for key, what, changed in _changes(name, value, hints_of(kind)[field.name]):
            try:
                other = replace(record, **{field.name: changed})
            except AdapterExportError:  # a record that refuses the value cannot be loaded with it
                continue
            yield key, what, other


def _changes(name: str, value: Any, hint: Any) -> Changes:
    hint, rules = _plain(hint)
    if get_origin(hint) in (Union, types.UnionType):
        members = [_plain(one)[0] for one in get_args(hint)]
        if type(None) in members:
            if value is not None:
                yield name, "null", None
            else:
                yield from ((name, "a value", other) for one in members for other in _values(one))
        if value is None:
            return
    if is_dataclass(value) and not isinstance(value, type):
        for key, what, changed in changed_records(value):
            yield key, f"{name}: {what}", changed
    elif isinstance(value, tuple):
        yield from _changed_items(name, value, hint)
    elif isinstance(value, Mapping):
        yield from _changed_values(name, value, hint)
    else:
        yield from ((name, repr(other), other) for other in _others(value, hint, rules))


def _changed_items(name: str, items: tuple[Any, ...], hint: Any) -> Changes:
    (item, *_) = get_args(hint) or (Any,)
    if items:
        yield name, "the last item removed", items[:-1]
    if len(items) > 1:
        yield name, "the first item removed", items[1:]
        yield name, "reversed", items[::-1]
    for at in sorted({0, len(items) - 1} if items else set()):
        for key, what, changed in _changes(name, items[at], item):
            yield key, f"[{at}] {what}", (*items[:at], changed, *items[at + 1 :])
    if not items:
        yield from ((name, "an item added", (value,)) for value in _values(_plain(item)[0]))


def _changed_values(name: str, values: Mapping[str, Any], hint: Any) -> Changes:
    if not values:
        return
    _, item = get_args(hint)
    first, *_ = values
    yield name, f"`{first}` removed", {key: value for key, value in values.items() if key != first}
    for key, what, changed in _changes(name, values[first], item):
        yield key, f"[{first}] {what}", {**values, first: changed}


def _plain(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a hint without annotations, and the annotations."""
    if get_origin(hint) is Annotated:
        plain, *rules = get_args(hint)
        return plain, tuple(rules)
    return hint, ()


def _others(value: Any, hint: Any, rules: tuple[Any, ...]) -> list[Any]:
    """Return other values of the type of a simple value."""
    choices = [*get_args(hint)] if get_origin(hint) is Literal else []
    choices += [choice for rule in rules if isinstance(rule, OneOf) for choice in rule.values]
    if choices:
        return [choice for choice in choices if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, *([value - 1] if value > 0 else [])]
    if isinstance(value, float):
        return [value * 2 + 1, *([value / 2] if value else [])]
    return [f"{value}x", *([_turned(value)] if any(letter.isdigit() for letter in value) else [])]


def _turned(text: str) -> str:
    """Return a text with its last digit changed, as for a version or a hash."""
    at = max(at for at, letter in enumerate(text) if letter.isdigit())
    return f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}"


def _values(kind: Any) -> list[Any]:
    """Return values of a simple type."""
    if get_origin(kind) is Literal:
        return [*get_args(kind)]
    return [{bool: True, int: 1, float: 1.0, str: "x"}[kind]] if kind in (bool, int, float, str) else []
