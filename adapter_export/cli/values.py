"""Option values: parsing of command-line text into the call's types."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click

from adapter_export.option import REMOTE, Option


def types_of(hint: object) -> tuple[frozenset[Any], Option]:
    """Return the types a value can have, without `None`, and the annotation's marks.

    A path that may also be on a hub has the mark `REMOTE` among its types.
    """
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    described = next((note for note in notes if note is not REMOTE), Option())
    return frozenset(_members(hint)) - {NoneType}, described if isinstance(described, Option) else Option(
        str(described)
    )


def _members(hint: object) -> Iterator[object]:
    """Yield the types of a union, and the marks of its paths."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        yield from _members(inner)
        yield from (note for note in notes if note is REMOTE)
    elif get_origin(hint) in (Union, UnionType):
        for member in get_args(hint):
            yield from _members(member)
    else:
        yield hint


def converter(kind: frozenset[Any], described: Option) -> Any:
    """Return the click type that parses a value."""
    if described.commas:
        return _NAMES
    if described.choices:
        return click.Choice(described.choices() if callable(described.choices) else described.choices)
    if kind == {int} and described.least is not None:
        return click.IntRange(min=described.least)
    if kind in _CONVERTERS:
        return _CONVERTERS[kind]
    if REMOTE in kind:
        return ADDRESS
    literals = [word for member in kind if get_origin(member) is Literal for word in get_args(member)]
    if literals:
        return click.Choice(literals)
    return next((parser for value_type, parser in _PLAIN.items() if value_type in kind), click.STRING)


class _Text(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """A value with its own syntax."""

    def __init__(self, metavar: str, parse: Callable[[str], object], otherwise: str) -> None:
        self.name = self._metavar = metavar
        self._parse = parse
        self._otherwise = otherwise

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        return self._metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text, or refuse it."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"`{value}` {self._otherwise}", param, ctx)


def _names(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise ValueError(text)
    return words


def _number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() else number


def _by_name(text: str, twice: str) -> dict[str, float]:
    pairs = [item.rsplit("=", 1) for item in text.split(",")]
    numbers = {name.strip(): _number(number) for name, number in pairs}
    if len(numbers) < len(pairs):
        raise click.BadParameter(f"`{text}` gives {twice}")
    return numbers


def _numbers(text: str) -> float | dict[str, float]:
    return _by_name(text, "one name two numbers") if "=" in text else _number(text)


def _weights_by_name(text: str) -> dict[str, float]:
    return _by_name(text, "one adapter two weights")


def _weights(text: str) -> tuple[float, ...] | dict[str, float]:
    return _weights_by_name(text) if "=" in text else tuple(map(float, text.split(",")))


def _class_weights(text: str) -> str | dict[str, float]:
    return text if text == "balanced" else _by_name(text, "one label two weights")


def _scaling(text: str) -> float | str:
    return text if text in ("learned", "channel") else float(text)


def _list_or_range(text: str, number: type[float]) -> tuple[float, ...] | str:
    return text if ".." in text else tuple(map(number, text.split(",")))


_NAMES = _Text("A,B,…", _names, "has an empty item")
_CONVERTERS: Mapping[frozenset[Any], click.ParamType[Any]] = {
    frozenset({tuple[str, ...]}): _NAMES,
    frozenset({tuple[str | int, ...]}): _NAMES,
    frozenset({float, Mapping[str, float]}): _Text(
        "N|NAME=N,…", _numbers, "is neither a number nor a list such as `query=8,value=4`"
    ),
    frozenset({float, Literal["learned", "channel"]}): _Text(
        "N|learned|channel", _scaling, "is neither a number nor `learned` or `channel`"
    ),
    frozenset({Mapping[str, float], Literal["balanced"]}): _Text(
        "balanced|LABEL=N,…", _class_weights, "is neither `balanced` nor a list such as `good=1,bad=3`"
    ),
    frozenset({tuple[int, ...]}): _Text(
        "N,…", lambda text: tuple(map(int, text.split(","))), "is not a list of whole numbers such as `16,64`"
    ),
    frozenset({tuple[int, ...], str}): _Text(
        "N,…|LOW..HIGH",
        lambda text: _list_or_range(text, int),
        "is neither a list such as `16,64` nor a range `4..256`",
    ),
    frozenset({tuple[float, ...], str}): _Text(
        "N,…|LOW..HIGH", lambda text: _list_or_range(text, float), "is neither a list such as `0.001,0.01` nor a range"
    ),
    frozenset({tuple[float, ...]}): _Text(
        "N,…", lambda text: tuple(map(float, text.split(","))), "is not a list of numbers such as `0.3,0.7`"
    ),
    frozenset({tuple[float, ...], Mapping[str, float]}): _Text(
        "N,…|NAME=N,…", _weights, "is not a list of numbers such as `0.3,0.7` or `a=0.3,b=0.7`"
    ),
    frozenset({Mapping[str, float]}): _Text(
        "A=0.3,B=0.7", _weights_by_name, "is not a list such as `a=0.3,b=0.7`; `--weights` names the members"
    ),
}


class _LocalPath(click.Path):
    """A local path; its reader reports a missing file with the errors of `errors.py`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a hub address, because a path would drop one of its slashes."""
        if isinstance(value, str) and "://" in value:
            self.fail(f"`{value}` is not a local path; `push` and `pull` go to hubs and registries", param, ctx)
        return super().convert(value, param, ctx)


class _Address(click.Path):
    """A path, hub id or reference, exactly as typed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """Return the text unchanged: a path would drop a slash of `hf://owner/name` and the dot of `./owner/name`."""
        return value


LOCAL_PATH, ADDRESS = _LocalPath(path_type=Path), _Address()
_PLAIN: Mapping[type, click.ParamType[Any]] = {Path: LOCAL_PATH, int: click.INT, float: click.FLOAT, str: click.STRING}
