"""Supported lengths of the axes of a base's inputs, which every runner of the base must respect."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from adapter_export.errors import RequestError
from adapter_export.format.records import Count, Different, Positive
from adapter_export.words import argument


@dataclass(frozen=True)
class Lengths:
    """Supported lengths of an axis: multiples of a number within a range, with exceptions.

    Attributes:
        minimum: the smallest supported length. 0 only with a cache: an encoder receives all tokens of a text in the
            first call, and none in later calls.
        maximum: the largest supported length; null if no limit is known.
        multiple_of: divisor of all lengths.
        exceptions: unsupported lengths in the range.
    """

    minimum: Count = 1
    maximum: Positive | None = None
    multiple_of: Positive = 1
    exceptions: Annotated[tuple[Positive, ...], Different()] = ()

    @classmethod
    def of(
        cls, minimum: int = 1, maximum: int | None = None, multiple_of: int = 1, exceptions: Sequence[int] = ()
    ) -> Self | None:
        """Return the lengths within two bounds, which need not be supported themselves, or `None` if there are none."""
        first = -(-max(minimum, 0) // multiple_of) * multiple_of
        while first in exceptions:
            first += multiple_of
        last = None if maximum is None else maximum // multiple_of * multiple_of
        while last is not None and last in exceptions:
            last -= multiple_of
        if last is not None and last < first:
            return None
        inside = {number for number in exceptions if first < number and (last is None or number < last)}
        return cls(first, last, multiple_of, tuple(sorted(n for n in inside if n % multiple_of == 0)))

    def __contains__(self, length: int) -> bool:
        above = length >= self.minimum and (self.maximum is None or length <= self.maximum)
        return above and length % self.multiple_of == 0 and length not in self.exceptions

    def __str__(self) -> str:
        ends = f"{self.minimum} or more" if self.maximum is None else f"{self.minimum} to {self.maximum}"
        ends = str(self.minimum) if self.fixed else ends
        step = f", multiples of {self.multiple_of}" if self.multiple_of > 1 and not self.fixed else ""
        return ends + step + (f", but not {', '.join(map(str, self.exceptions))}" if self.exceptions else "")

    @property
    def fixed(self) -> bool:
        """True if only one length is supported."""
        return self.minimum == self.maximum

    @property
    def unbroken(self) -> bool:
        """True if every length up to the largest is supported, so that no text needs padding."""
        return self.minimum <= self.multiple_of == 1 and not self.exceptions

    def at_least(self, length: int) -> int | None:
        """Return the smallest supported length of at least `length`, or `None` if all are smaller."""
        valid = Lengths.of(max(length, self.minimum), self.maximum, self.multiple_of, self.exceptions)
        return None if valid is None else valid.minimum

    def at_most(self, length: int) -> int | None:
        """Return the largest supported length of at most `length`, or `None` if all are larger."""
        upper = length if self.maximum is None else min(length, self.maximum)
        valid = Lengths.of(self.minimum, upper, self.multiple_of, self.exceptions) if upper >= self.minimum else None
        return None if valid is None else valid.maximum

    def near(self, length: int) -> int:
        """Return the smallest supported length of at least `length`, or else the largest."""
        next_length = self.at_least(length)
        return next_length if next_length is not None else self.maximum or self.minimum

    def within(self, other: Lengths) -> Lengths | None:
        """Return the intersection with other lengths, or `None` if it is empty."""
        ends = [end for end in (self.maximum, other.maximum) if end is not None]
        return Lengths.of(
            max(self.minimum, other.minimum),
            min(ends, default=None),
            math.lcm(self.multiple_of, other.multiple_of),
            (*self.exceptions, *other.exceptions),
        )

    def covers(self, other: Lengths) -> bool:
        """Return whether all lengths of `other` are supported."""
        both = self.within(other)
        return both is not None and (both == other or other.fixed)

    def edges(self, most: int) -> list[int]:
        """Return the smallest length, the largest up to `most`, and the neighbours of exceptions up to `most`."""
        last = self.at_most(most) or self.minimum
        around = [
            end for exception in self.exceptions for end in (self.at_most(exception - 1), self.at_least(exception + 1))
        ]
        return sorted({self.minimum, last, *(end for end in around if end is not None and end <= last)})

    def outside(self) -> list[int]:
        """Return unsupported lengths near supported ones: beyond the ends, between multiples, and the exceptions."""
        above = [] if self.maximum is None else [self.maximum + 1]
        near = {self.minimum - 1, self.minimum + 1, *above, *self.exceptions}
        return sorted(length for length in near if length >= 1 and length not in self)


Bounds = Mapping[str, Lengths]
"""Lengths by axis name, including sums such as `past + sequence`; other axes are unrestricted."""

_LENGTHS = re.compile(
    r"(?P<fixed>[1-9]\d{0,8})|(?P<low>[1-9]\d{0,8})?\.\.(?P<high>[1-9]\d{0,8})?|multiple-of-(?P<step>[1-9]\d{0,8})"
)


def parse_lengths(text: str) -> Lengths | None:
    """Parse lengths such as `128`, `64..512`, `..512`, `64..` or `multiple-of-8`; `None` if none are left.

    Raises:
        ValueError: the text is invalid.
    """
    allowed: Lengths | None = Lengths()
    for part in text.split(","):
        match = _LENGTHS.fullmatch(part.strip())
        if match is None or match[0] == "..":
            raise ValueError(text)
        low, high, step, fixed = (int(match[name] or 0) or None for name in ("low", "high", "step", "fixed"))
        of_part = Lengths.of(fixed or low or 1, fixed or high, step or 1)
        allowed = None if allowed is None or of_part is None else allowed.within(of_part)
    return allowed


@dataclass(frozen=True)
class Fit:
    """Padded length of a row by its number of tokens, for a base that supports only some lengths.

    Attributes:
        lengths: supported lengths of the base.
        pads: whether masked tokens have no effect in the base.
    """

    lengths: Lengths
    pads: bool

    def __call__(self, tokens: int, *, pads: bool = True) -> int:
        """Return the next supported length; `pads` is false for a row whose adapter counts padding.

        Raises:
            RequestError: no such length, or padding would change the result.
        """
        padded = self.lengths.at_least(tokens)
        if padded is None or (padded != tokens and not (self.pads and pads)):
            raise RequestError(
                "the base does not support the number of tokens of a text"
                + ("" if padded is None else ", and padding would change its result"),
                found=tokens,
                expected=self.lengths,
                fix="pass texts of other lengths, or capture the base with " + argument("lengths", option="axis"),
            )
        return padded


def axis_lengths(axis: int | str, bounds: Bounds) -> Lengths:
    """Return the supported lengths of an axis; a number is its only length."""
    return Lengths(axis, axis) if isinstance(axis, int) else bounds.get(axis, Lengths())
