"""Records: dataclasses whose type hints declare a JSON format.

The strict reader here and the published JSON Schemas (`schema.py`) follow from the same hints:

| hint | in JSON |
|---|---|
| `str`, `int`, `float` | a string, a whole number, a number |
| `bool`, `None`, `Any` | true or false, null, anything |
| `Literal["a", "b"]` | one of these strings |
| `tuple[X, …]`, `Mapping[str, X]` | a list, an object with any keys |
| a dataclass | an object with these keys; a field with a default may be absent |
| `A | B` | by the type of the value; records are distinguished by their `Literal` field |
| `Annotated[X, rule]` | as `X`; the rule is one of `Rule` |

A class attribute `AT_LEAST_ONE_OF` lists keys of which at least one is required. Uses only the standard library.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, partial
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from adapter_export.errors import UPGRADE, AdapterError, FormatError, GraphError, VersionError
from adapter_export.interval import Interval
from adapter_export.tables import number_of
from adapter_export.words import quoted

Record = TypeVar("Record")
Value = TypeVar("Value")

_Reader = Callable[[Any, str], Any]
"""Converts the JSON value at a JSON path."""


@dataclass(frozen=True)
class Pattern:
    """Strings that match a regular expression as a whole.

    Attributes:
        name: name of the type in schemas.
        regex: the expression, without anchors, in the common subset of Python and ECMA 262.
        expected: description of valid strings.
        what: message for other strings.
    """

    name: str
    regex: str
    expected: str
    what: str = "breaks the format"

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(self.regex, value) is not None

    def __str__(self) -> str:
        return self.expected


@dataclass(frozen=True)
class OneOf:
    """Strings from a list."""

    values: tuple[str, ...]

    def __contains__(self, value: str) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return _one_of(self.values)


class NotEmpty:
    """Non-empty strings, lists and objects."""

    def __contains__(self, value: Sized) -> bool:
        return len(value) > 0

    def __str__(self) -> str:
        return "at least one value"


class Different:
    """Lists of unique values."""

    def __contains__(self, value: tuple[Any, ...]) -> bool:
        return len(set(value)) == len(value)

    def __str__(self) -> str:
        return "different values"


class NotNull:
    """Optional values that must not be null."""

    def __contains__(self, value: object) -> bool:
        return value is not None

    def __str__(self) -> str:
        return "a value, or no such key"


Rule = Pattern | Interval | OneOf | NotEmpty | Different | NotNull

OrAbsent = Annotated[Value | None, NotNull()]
Positive = Annotated[int, Interval(1)]
Count = Annotated[int, Interval(0)]
NotNegative = Annotated[float, Interval(0)]
Text = Annotated[str, NotEmpty()]
Sha256 = Annotated[str, Pattern("sha256", "[0-9a-f]{64}", "64 lower-case hexadecimal digits")]
SEMVER = Pattern("version", r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})", "major.minor.patch")
Name = Annotated[
    str, Pattern("name", "[A-Za-z0-9_][A-Za-z0-9_.-]*", "letters, digits, `_`, `.`, `-`, a letter, digit or `_` first")
]
FileName = Annotated[
    str, Pattern("fileName", "[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits, `.`, `_`, `-`, a letter or digit first")
]
_PART = r"(?!\.{1,2}(/|$))[^\u0000-\u001f\u007f/\\:]+"
RelativePath = Annotated[
    str,
    Pattern(
        "path",
        f"{_PART}(/{_PART})*",
        "a relative path with `/` between its parts, none of them empty, `.` or `..`, or with `\\`, `:` or a control "
        "character",
        "a path that may leave its folder",
    ),
]

_JSON_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}


def record_from_json(kind: type[Record], document: object, path: str = "$") -> Record:
    """Convert a JSON object to a record; `path` is its JSON path, for messages.

    Raises:
        FormatError: a key is unknown or missing, or a value violates its hint; the message contains the JSON path.
    """
    hints, needed, either = hints_of(kind), required_keys(kind), at_least_one_of(kind)
    if not isinstance(document, dict):
        raise _fault(path, document, "an object")
    keys = document.keys()
    if not needed <= keys <= hints.keys() or (either and keys.isdisjoint(either)):
        wrong = [f"unknown key `{key}`" for key in document if key not in hints]
        wrong += [f"no key `{key}`" for key in hints if key in needed - keys]
        if either and keys.isdisjoint(either):
            wrong.append(f"none of the keys {quoted(either)}")
        expected = "the keys " + quoted(hints)
        raise FormatError("breaks the format", where=f"`{path}`", found="; ".join(wrong), expected=expected)
    readers = _readers(cast(Any, kind))
    values = {key: readers[key](value, f"{path}.{key}") for key, value in document.items()}
    try:
        return kind(**values)
    except AdapterError as error:  # checks of the record, such as labels against the task type
        raise FormatError(error.what, where=f"`{path}`", found=error.found, expected=error.expected) from error


def hints_of(kind: Any) -> Mapping[str, Any]:
    """Return the type hint of each key of a record."""
    return _declared(kind)[0]


def required_keys(kind: Any) -> frozenset[str]:
    """Return the required keys of a record."""
    return _declared(kind)[1]


@cache
def _declared(kind: Any) -> tuple[Mapping[str, Any], frozenset[str]]:
    hints = get_type_hints(kind, include_extras=True)
    needed = (field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING)
    return {field.name: hints[field.name] for field in fields(kind)}, frozenset(needed)


def at_least_one_of(kind: type) -> tuple[str, ...]:
    """Return the keys of which at least one is required; empty without such a rule."""
    return tuple(getattr(kind, "AT_LEAST_ONE_OF", ()))


@cache
def split_hint(hint: Any) -> tuple[Any, tuple[Rule, ...]]:
    """Return a hint without its rules, and the rules."""
    if get_origin(hint) is not Annotated:
        return hint, ()
    kind, *rules = get_args(hint)
    return kind, tuple(rules)


@cache
def members_of(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union; any other hint is its only member."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


@cache
def _readers(kind: Any) -> Mapping[str, _Reader]:
    """Return the reader for each key of a record."""
    return {key: _reader(hint) for key, hint in hints_of(kind).items()}


@cache
def _reader(hint: Any) -> _Reader:
    """Return the reader for a hint, resolved once because files contain up to millions of values."""
    kind, rules = split_hint(hint)
    members = members_of(kind)
    read = _union_reader(members) if len(members) > 1 else _plain_reader(kind)
    if not rules:
        return read

    def checked(value: Any, path: str) -> Any:
        result = read(value, path)
        for rule in rules:
            if result not in rule:
                what = rule.what if isinstance(rule, Pattern) else "breaks the format"
                raise FormatError(what, where=f"`{path}`", found=_shown(value), expected=rule)
        return result

    return checked


def _union_reader(members: tuple[Any, ...]) -> _Reader:
    """Return a reader that selects a member by the JSON type of the value."""
    kinds = [split_hint(member)[0] for member in members]
    choices = [(kind, _test(kind), _reader(member)) for kind, member in zip(kinds, members, strict=True)]

    def read_union(value: Any, path: str) -> Any:
        fitting = [(kind, read) for kind, fits, read in choices if fits(value)]
        if len(fitting) == 1:
            return fitting[0][1](value, path)
        if not fitting:
            raise _fault(path, value, " or ".join(dict.fromkeys(map(_name, kinds))))
        return record_from_json(_tagged([kind for kind, _ in fitting], value, path), value, path)

    return read_union


def _tagged(kinds: Sequence[Any], value: Mapping[str, Any], path: str) -> Any:
    """Return the record selected by the tag (`Literal`) of an object."""
    tag = next(key for key, hint in hints_of(kinds[0]).items() if get_origin(hint) is Literal)
    without = next((kind for kind in kinds if tag not in required_keys(kind)), None)
    if tag not in value and without is not None:
        return without
    by_tag = {choice: kind for kind in kinds for choice in get_args(hints_of(kind)[tag])}
    if not isinstance(value.get(tag), str) or value[tag] not in by_tag:
        raise _fault(f"{path}.{tag}", value.get(tag), _one_of(by_tag))
    return by_tag[value[tag]]


def _plain_reader(kind: Any) -> _Reader:
    """Return the reader for a hint without unions and rules."""
    if is_dataclass(kind) and isinstance(kind, type):
        return partial(record_from_json, kind)
    fits, expected, origin = _test(kind), _name(kind), get_origin(kind)
    kinds = get_args(kind)
    if origin is tuple:
        same = _reader(kinds[0]) if kinds[-1] is Ellipsis else None
        each = [] if same else [_reader(of) for of in kinds]

        def read_list(value: Any, path: str) -> Any:
            if not fits(value):
                raise _fault(path, value, expected)
            if same is not None:
                return tuple([same(item, f"{path}[{index}]") for index, item in enumerate(value)])
            if len(each) != len(value):
                raise _fault(path, value, number_of(len(each), "value"))
            return tuple([read(value[index], f"{path}[{index}]") for index, read in enumerate(each)])

        return read_list
    if origin is Mapping:
        key_of, value_of = map(_reader, kinds)

        def read_mapping(value: Any, path: str) -> Any:
            if not fits(value):
                raise _fault(path, value, expected)
            return {key_of(key, f"{path}.{key}"): value_of(item, f"{path}.{key}") for key, item in value.items()}

        return read_mapping
    choices, exact = kinds if origin is Literal else None, kind if kind in (int, float) else None

    def read_value(value: Any, path: str) -> Any:
        if type(value) is kind:
            return value
        if not fits(value):
            raise _fault(path, value, expected)
        if choices is not None and value not in choices:
            raise _fault(path, value, _one_of(choices))
        return value if exact is None else exact(value)

    return read_value


def _test(kind: Any) -> Callable[[Any], bool]:
    """Return a test whether a value has the JSON type of a hint.

    JSON has one kind of number, so `64.0` is an integer.
    """
    if kind is Any:
        return lambda _: True
    if kind is int:
        return lambda value: (
            (isinstance(value, int) and not isinstance(value, bool))
            or (isinstance(value, float) and value.is_integer())
        )
    if kind is float:
        return lambda value: (
            isinstance(value, float)
            or (isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max)
        )
    origin = get_origin(kind)
    json_type = str if origin is Literal else list if origin is tuple else kind if kind in _JSON_NAMES else dict
    return lambda value: isinstance(value, json_type)


def _name(kind: Any) -> str:
    origin = get_origin(kind)
    return "a string" if origin is Literal else "a list" if origin is tuple else _JSON_NAMES.get(kind, "an object")


def _one_of(choices: Iterable[str]) -> str:
    return f"one of {quoted(choices)}"


def _fault(path: str, value: object, expected: str) -> FormatError:
    return FormatError("breaks the format", where=f"`{path}`", found=_shown(value), expected=expected)


def _shown(value: object) -> str:
    if isinstance(value, dict | list) or value is None:
        return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else "null"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if len(text) <= 80 else f"`{text[:80]}…`"


@contextmanager
def version_checked(document: object, supported: str, where: object) -> Iterator[None]:
    """Check a document's version before the block reads the document.

    `supported` is the version written by this release, `major.minor.patch`. A newer minor version may contain unknown
    parts: if the block fails on such a document, the error names this as the likely reason.

    Raises:
        FormatError: the version is missing.
        VersionError: the major version differs, or a newer minor version contains unknown parts.
    """
    version = document.get("version") if isinstance(document, dict) else None
    if not isinstance(version, str) or version not in SEMVER:
        raise FormatError(
            "has no format version",
            where=where,
            found="nothing" if version is None else f"`{version}`",
            expected='an object with a `version` such as "1.0.0"',
            fix="check that this is the right file",
        )
    numbers, known = ([int(number) for number in text.split(".")] for text in (version, supported))
    expected = f"{known[0]}.x.x, at most {supported}"
    if numbers[0] != known[0]:
        raise VersionError(
            "has a format version that this release does not support",
            where=where,
            found=f"version {version}",
            expected=expected,
            fix=UPGRADE if numbers > known else "write it again with this release",
        )
    try:
        yield
    except (FormatError, GraphError) as error:
        if numbers[1] <= known[1]:
            raise
        raise VersionError(
            "has a newer format version with parts that this release does not support",
            where=where,
            found=f"version {version} with, in {error.where!s}, " + (error.found or error.what),
            expected=expected,
            fix=UPGRADE,
        ) from error
