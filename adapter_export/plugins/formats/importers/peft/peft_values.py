"""Typed values of `adapter_config.json`, and module path patterns with PEFT's matching rules."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adapter_export.errors import FormatError
from adapter_export.safe_io.linear_regex import MOST_STATES, UnboundedPatternError, linear_pattern
from adapter_export.tables import number_of

Names = str | tuple[str, ...] | None
"""Modules in PEFT: a regular expression for whole paths, or path suffixes."""

_MOST_PATTERNS = 10_000
"""Maximum patterns of an option; PEFT writes at most one per module."""

_MOST_STATES = MOST_STATES // 2
"""Maximum states of all patterns of an option that need a search."""

_MOST = 1e9
"""Maximum number of an option; products of larger ones overflow float32."""


def matching(patterns: Iterable[str], path: str) -> str:
    """Return the first pattern that matches a module (`peft.utils.other.get_pattern_key`), or the path itself."""
    return next((pattern for pattern in patterns if matches_pattern(pattern, path)), path)


def matches_pattern(pattern: str, path: str) -> bool:
    """Return whether a pattern matches the end of a path, from a name on."""
    return linear_pattern(rf"(.*\.)?({pattern})$").matches(path, whole=False)


@dataclass(frozen=True)
class Config:
    """An `adapter_config.json`; `where` names it in the `FormatError` for a value of a wrong type."""

    values: Mapping[str, Any]
    where: object

    def text(self, key: str) -> str | None:
        """Return a text, or `None` if absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, value, "a text")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Return a Boolean."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return default if value is None else value

    def number(self, key: str, default: float, *, at_least: float = -math.inf, whole: bool = False) -> float:
        """Return a number, or the default if the key is absent."""
        value = self.values.get(key)
        return default if value is None else self._checked(key, value, at_least, whole)

    def count(self, key: str, default: int) -> int:
        """Return a whole number of at least 1, or the default if the key is absent."""
        return int(self.number(key, default, at_least=1, whole=True))

    def number_at(self, path: str, key: str, pattern_key: str, default: float) -> float:
        """Return a number for a module: that of the first matching pattern, or else that of `key`."""
        patterns = self.patterns(pattern_key)
        return patterns.get(matching(patterns, path), self.number(key, default))

    def patterns(self, key: str, *, at_least: float = -math.inf, whole: bool = False) -> dict[str, float]:
        """Return numbers by regular expression over module paths."""
        value = self.values.get(key) or {}
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object of numbers by pattern")
        self._check_patterns(key, value)
        return {name: self._checked(f"{key}.{name}", number, at_least, whole) for name, number in value.items()}

    def names(self, key: str) -> Names:
        """Return modules."""
        value = self.values.get(key)
        if isinstance(value, str):
            self._check_patterns(key, [value])
            return value
        return None if value is None else self.listed(key, str)

    def listed(self, key: str, sort: type) -> tuple[Any, ...]:
        """Return a list of texts or integers; a single value is a list of one."""
        value = self.values.get(key)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(entry, sort) and not isinstance(entry, bool) for entry in values):
            raise self.wrong(key, value, f"a list of {'texts' if sort is str else 'whole numbers'}")
        return tuple(values)

    def mapped(self, key: str) -> str | None:
        """Return a text of `auto_mapping`, which names the model's class."""
        mapping = self.values.get("auto_mapping")
        name = mapping.get(key) if isinstance(mapping, dict) else None
        return name if isinstance(name, str) else None

    def wrong(self, key: str, actual: object, expected: str) -> FormatError:
        """Return the error for a value that PEFT does not write."""
        return FormatError(
            f"`{key}` has a value that PEFT does not write",
            where=self.where,
            found=actual,
            expected=expected,
            fix="get the file from its source again, or correct it",
        )

    def _checked(self, key: str, value: object, at_least: float, whole: bool) -> float:
        sort = "a whole number" if whole else "a number"
        least = max(at_least, -_MOST)
        if (
            isinstance(value, bool)
            or not isinstance(value, int if whole else int | float)
            or not least <= value <= _MOST
        ):
            raise self.wrong(key, value, f"{sort} of at least {least:g} and at most {_MOST:g}")
        return value

    def _check_patterns(self, key: str, patterns: Collection[str]) -> None:
        """Raise FormatError for invalid expressions, and for those that would take too long to match."""
        states = 0
        for pattern in patterns:
            try:
                states += linear_pattern(pattern).states
                linear_pattern(rf"(.*\.)?({pattern})$")
            except UnboundedPatternError as error:
                raise self.wrong(key, f"{pattern[:80]} ({error})", "a regular expression") from error
        if len(patterns) > _MOST_PATTERNS or states > _MOST_STATES:
            counted = f"{number_of(len(patterns), 'pattern')} of {number_of(states, 'state')}"
            raise self.wrong(key, counted, f"at most {_MOST_PATTERNS:,} patterns of {_MOST_STATES:,} states in all")
