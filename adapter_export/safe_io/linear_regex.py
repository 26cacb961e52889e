"""Regular expressions of untrusted files, matched in bounded time.

Python's matcher backtracks: `(a+)+$` takes 2^n steps for n characters. Here a match is a search over pairs of a state
and a position, each of which is visited once. Python's own parser reads the expressions, and its matcher runs those
that cannot backtrack far.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

MOST_CHARACTERS = 2**14
"""Maximum length of an expression."""

MOST_STATES = 2000
"""Maximum states of an expression; those of a literal are its characters."""

_FEW = 2
"""Repeats and branches of an expression that Python's matcher runs."""

_parser: Any = importlib.import_module("re._parser")
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT")
_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}

Test = Callable[[str], bool]


class UnboundedPatternError(ValueError):
    """An expression that is not valid, or that cannot be matched in bounded time."""


@dataclass(frozen=True)
class _Step:
    """A state: consumes a character, looks around, or continues in several states.

    Attributes:
        after: the next states.
        test: whether a character may be consumed; `None` for steps that consume nothing.
        look: the first state of an expression that must match here; `None` without one.
        behind: characters before this position at which that expression starts, up to this position; `None` for
            expressions that start here.
        negated: whether that expression must not match.
        edge: `start` or `end` of the text, where the step must be; an empty string for any position.
    """

    after: tuple[int, ...] = ()
    test: Test | None = None
    look: int | None = None
    behind: int | None = None
    negated: bool = False
    edge: str = ""


@dataclass(eq=False)
class LinearPattern:
    """A regular expression without side effects of its text on the time of a match.

    Args:
        text: the expression, in Python's syntax without backreferences, flags and atomic groups.

    Raises:
        UnboundedPatternError: it is not valid, or cannot be matched in bounded time.
    """

    text: str
    _steps: list[_Step] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if len(self.text) > MOST_CHARACTERS:
            raise UnboundedPatternError(f"more than {MOST_CHARACTERS:,} characters")
        try:
            tree = _parser.parse(self.text)
        except (re.error, RecursionError, OverflowError) as error:
            raise UnboundedPatternError(str(error) or "too deeply nested") from error
        self._accept = self._add(_Step())
        self._is_simple = _is_simple(tree)
        try:
            if tree.state.flags & ~re.UNICODE.value:
                raise UnboundedPatternError("flags are not supported")
            self._first: int | None = self._sequence(tree, self._accept)
        except UnboundedPatternError:
            if not self._is_simple:
                raise
            self._first = None

    @property
    def states(self) -> int:
        """Number of states; 0 for an expression that Python's matcher may run."""
        return 0 if self._is_simple else len(self._steps)

    def matches(self, text: str, *, whole: bool = True) -> bool:
        """Return whether the expression matches a text: as a whole, or its beginning."""
        if self._is_simple:
            return (self._compiled.fullmatch if whole else self._compiled.match)(text) is not None
        assert self._first is not None
        return self._reaches(self._first, text, 0, len(text) if whole else None, {})

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.text)

    def _reaches(self, first: int, text: str, start: int, end: int | None, looks: dict[tuple[int, int], bool]) -> bool:
        """Return whether the states after `first` accept a part of the text that begins at `start`."""
        pending, visited = [(first, start)], {(first, start)}
        while pending:
            state, at = pending.pop()
            if state == self._accept and end in (None, at):
                return True
            step = self._steps[state]
            if step.test is not None:
                if at == len(text) or not step.test(text[at]):
                    continue
                at += 1
            elif step.edge:
                if not _is_at(step.edge, text, at):
                    continue
            elif step.look is not None and not self._looks(state, text, at, looks):
                continue
            for after in step.after:
                if (after, at) not in visited:
                    visited.add((after, at))
                    pending.append((after, at))
        return False

    def _looks(self, state: int, text: str, at: int, looks: dict[tuple[int, int], bool]) -> bool:
        if (state, at) not in looks:
            step = self._steps[state]
            assert step.look is not None
            start, end = (at, None) if step.behind is None else (at - step.behind, at)
            reaches = start >= 0 and self._reaches(step.look, text, start, end, looks)
            looks[state, at] = reaches != step.negated
        return looks[state, at]

    def _add(self, step: _Step) -> int:
        if len(self._steps) >= MOST_STATES:
            raise UnboundedPatternError(f"more than {MOST_STATES:,} states")
        self._steps.append(step)
        return len(self._steps) - 1

    def _sequence(self, tree: Iterable[Any], after: int) -> int:
        """Add the states of an expression, and return the first; `after` follows it."""
        for operator, argument in reversed(list(tree)):
            after = self._item(str(operator), argument, after)
        return after

    def _item(self, operator: str, argument: Any, after: int) -> int:
        test = _test_of(operator, argument)
        if test is not None:
            return self._add(_Step((after,), test))
        if operator == "BRANCH":
            return self._add(_Step(tuple(self._sequence(branch, after) for branch in argument[1])))
        if operator == "SUBPATTERN" and not argument[1] and not argument[2]:
            return self._sequence(argument[3], after)
        if operator in _REPEATS:
            least, most, body = argument
            return self._repeat(least, most, body, after)
        if operator in ("ASSERT", "ASSERT_NOT"):
            direction, body = argument
            width = body.getwidth()[0] if direction < 0 else None
            look = self._sequence(body, self._accept)
            return self._add(_Step((after,), look=look, behind=width, negated=operator == "ASSERT_NOT"))
        if operator == "AT" and str(argument) in _EDGES:
            return self._add(_Step((after,), edge=_EDGES[str(argument)]))
        raise UnboundedPatternError(f"`{operator.lower()}` is not supported")

    def _repeat(self, least: int, most: int, body: Any, after: int) -> int:
        first = after
        if most is _parser.MAXREPEAT:
            first = self._add(_Step())  # replaced once the body is known, which leads back to it
            self._steps[first] = _Step((self._sequence(body, first), after))
        else:
            for _ in range(most - least):
                first = self._add(_Step((self._sequence(body, first), after)))
        for _ in range(least):
            first = self._sequence(body, first)
        return first


_EDGES = {
    "AT_BEGINNING": "start",
    "AT_BEGINNING_STRING": "start",
    "AT_END": "line end",
    "AT_END_STRING": "end",
}


def _is_at(edge: str, text: str, at: int) -> bool:
    if edge == "start":
        return at == 0
    return at == len(text) or (edge == "line end" and at == len(text) - 1 and text[at] == "\n")


def _test_of(operator: str, argument: Any) -> Test | None:
    """Return the test of an operator that consumes a character."""
    if operator == "LITERAL":
        return chr(argument).__eq__
    if operator == "NOT_LITERAL":
        return chr(argument).__ne__
    if operator == "ANY":
        return "\n".__ne__
    if operator != "IN":
        return None
    negated = bool(argument) and str(argument[0][0]) == "NEGATE"
    tests = [_member_of(str(kind), member) for kind, member in argument[negated:]]
    return lambda character: any(test(character) for test in tests) != negated


def _member_of(kind: str, argument: Any) -> Test:
    if kind == "RANGE":
        low, high = argument
        return lambda character: low <= ord(character) <= high
    if kind == "CATEGORY" and str(argument) in _CATEGORIES:
        category = re.compile(_CATEGORIES[str(argument)])
        return lambda character: category.match(character) is not None
    if kind == "LITERAL":
        return chr(argument).__eq__
    raise UnboundedPatternError(f"`{kind.lower()}` is not supported")


def _is_simple(tree: Any) -> bool:
    """Return whether Python's matcher takes few steps: two repeats and branches, and loops over a single character."""
    items = list(_items(tree))
    loops = [argument for operator, argument in items if "REPEAT" in operator]
    branches = sum(operator == "BRANCH" for operator, _ in items)
    looks = any(operator.startswith(("GROUPREF", "ASSERT")) for operator, _ in items)
    are_short = all(most == 1 or (len(body) == 1 and _test_of(str(body[0][0]), body[0][1])) for _, most, body in loops)
    return len(loops) <= _FEW and branches <= _FEW and are_short and not looks


def _items(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield the operators of an expression and its parts, with their arguments."""
    pending: list[Any] = [tree]
    while pending:
        part = pending.pop()
        if isinstance(part, _parser.SubPattern):
            for operator, argument in part:
                yield str(operator), argument
                pending.append(argument)
        elif isinstance(part, tuple | list):
            pending += part


@lru_cache(maxsize=2**14)
def linear_pattern(text: str) -> LinearPattern:
    """Return a compiled expression; errors as of `LinearPattern`."""
    return LinearPattern(text)
