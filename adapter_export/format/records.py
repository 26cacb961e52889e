"""JSON objects as dataclasses: a strict reader that is driven by type hints and needs the standard library only."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from adapter_export.errors import FormatError, GraphError, VersionError, within

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


# Versions of file formats: which ones a release reads, and how it says no.

_SEMVER = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")


@contextmanager
def version_checked(document: object, supported: str, where: object) -> Iterator[None]:
    """Check a document's version, then let the block read the document.

    A newer minor version may hold keys, ops and values that this release does not know: where the block stumbles over
    such a document, the error says that the version is the likely reason.

    Args:
        document: parsed JSON.
        supported: the version that this release writes, `major.minor.patch`.
        where: the file, for messages.

    Raises:
        FormatError: there is no version.
        VersionError: another major version, or a newer minor version with something that this release does not know.
    """
    found, known = _version_of(document, where), _numbers(supported)
    if found[0] != known[0]:
        raise _version_error("is of a format version that this release does not read", where, found, supported, "")
    try:
        yield
    except (FormatError, GraphError) as error:
        if found[1] <= known[1]:
            raise
        what = "is of a newer format version and holds what this release does not know"
        reason = f" with, in {error.where}, {error.found or error.what}"
        raise _version_error(what, where, found, supported, reason) from error


def _version_error(what: str, where: object, found: tuple[int, ...], supported: str, reason: str) -> VersionError:
    newer = found > _numbers(supported)
    return VersionError(
        what,
        where=where,
        found=f"version {'.'.join(map(str, found))}{reason}",
        expected=f"{supported.partition('.')[0]}.x.x, at most {supported}",
        fix="run `pip install --upgrade adapter-export`" if newer else "write it again with this release",
    )


def _version_of(document: object, where: object) -> tuple[int, ...]:
    version = document.get("version") if isinstance(document, dict) else None
    if not isinstance(version, str) or not _SEMVER.fullmatch(version):
        raise FormatError(
            "states no format version",
            where=where,
            found="nothing" if version is None else f"`{version}`",
            expected='an object with a `version` such as "1.0.0"',
            fix="check that this is the right file",
        )
    return _numbers(version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


Record = TypeVar("Record", bound="DataclassInstance")

_JSON_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}
_UNIONS = (Union, types.UnionType)


def record_from_json(kind: type[Record], document: object, path: str = "$") -> Record:
    """Make a dataclass of a JSON object.

    Its type hints may be `str`, `int`, `float`, `bool`, `Literal`, `tuple[X, …]`, `Mapping[str, X]`, unions, records
    and `Annotated[X, rule]` with a rule that raises an error of this package. A field with a default may be absent.

    Args:
        kind: the dataclass.
        document: parsed JSON.
        path: the JSON path of the document, for messages.

    Raises:
        FormatError: an unknown or missing key, or a value of a wrong type; the message gives the JSON path.
    """
    hints = _hints(kind)
    if not isinstance(document, dict):
        raise _fault(path, document, "an object")
    needed = {field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING}
    wrong = [f"unknown key `{key}`" for key in document if key not in hints]
    wrong += [f"no key `{key}`" for key in hints if key in needed - document.keys()]
    if wrong:
        expected = "the keys " + ", ".join(f"`{key}`" for key in hints)
        raise FormatError("breaks the format", where=f"`{path}`", found="; ".join(wrong), expected=expected)
    return kind(**{key: _value(hints[key], value, f"{path}.{key}") for key, value in document.items()})


@cache
def _hints(kind: type[DataclassInstance]) -> Mapping[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _value(hint: Any, value: Any, path: str) -> Any:
    origin = get_origin(hint)
    if origin in _UNIONS:
        return _value(_alternative(hint, value, path), value, path)
    reader = _READERS.get(origin)
    if reader is not None:
        return reader(get_args(hint), value, path)
    if is_dataclass(hint) and isinstance(hint, type):
        return record_from_json(hint, value, path)
    if not _fits(hint, value):
        raise _fault(path, value, _JSON_NAMES[hint])
    return hint(value) if hint in (int, float) else value


def _annotated(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    kind, *rules = arguments
    result = _value(kind, value, path)
    with within(f"`{path}`"):
        for rule in rules:
            rule(result)
    return result


def _tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _fault(path, value, "a list")
    return tuple(_value(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value))


def _mapping(arguments: tuple[Any, ...], value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _fault(path, value, "an object")
    return {key: _value(arguments[1], item, f"{path}.{key}") for key, item in value.items()}


def _literal(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if not isinstance(value, str) or value not in arguments:
        raise _fault(path, value, f"one of {', '.join(f'`{choice}`' for choice in arguments)}")
    return value


_READERS: dict[Any, Callable[[tuple[Any, ...], Any, str], Any]] = {
    Annotated: _annotated,
    tuple: _tuple,
    Mapping: _mapping,
    Literal: _literal,
}


def _alternative(hint: Any, value: Any, path: str) -> Any:
    """The member of a union whose JSON type the value has."""
    for member in get_args(hint):
        if _fits(member, value):
            return member
    names = [_name(member) for member in get_args(hint)]
    raise _fault(path, value, " or ".join(names))


def _name(hint: Any) -> str:
    return "a string" if get_origin(hint) is Literal else _JSON_NAMES.get(_plain(hint), "an object or list")


def _plain(hint: Any) -> Any:
    """The type under an annotation: `tuple` of `Annotated[tuple[str, …], rule]`."""
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_origin(kind) or kind


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value has the JSON type of a hint; JSON has one kind of number, so `64.0` is an integer."""
    kind = _plain(hint)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is Literal:
        return isinstance(value, str)
    if kind in (str, type(None)):
        return isinstance(value, kind)
    if kind in (int, float):
        return isinstance(value, int) or (isinstance(value, float) and (kind is float or value.is_integer()))
    return isinstance(value, list) if kind is tuple else isinstance(value, dict)


def _fault(path: str, value: object, expected: str) -> FormatError:
    names = {dict: "an object", list: "a list", **_JSON_NAMES}
    shown = names[type(value)] if isinstance(value, dict | list) or value is None else f"`{value}`"
    return FormatError("breaks the format", where=f"`{path}`", found=shown, expected=expected)
