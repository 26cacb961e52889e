"""What there is to say about an op without computing anything: the columns of the table in `ops.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

FIRST_VERSION, SECOND_VERSION = "1.0.0", "1.1.0"
"""Of the adapter format."""

Dim = int | str
Shape = tuple[Dim, ...]

ShapeRule = Callable[[tuple[Shape, ...], Mapping[str, Dim]], Shape]
"""From the shapes read and the op's own dimensions to the shape returned; raises `GraphError`."""

CostRule = Callable[[Mapping[str, int]], int]


@dataclass(frozen=True)
class ParameterSpec:
    """A tensor that an op owns.

    Attributes:
        role: what it is to the op: `weight`, `bias`.
        shape: its dimensions in the op's own terms; `in` is the last axis of the first value that the op reads,
            `values` how many values a variadic op reads.
        optional: whether a node may leave it out.
        optional_since: the version of the adapter format from which on it may.
    """

    role: str
    shape: tuple[Dim, ...]
    optional: bool = False
    optional_since: str = FIRST_VERSION


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`, without `high` where the interval is half open. NaN is in none."""

    low: float
    high: float
    half_open: bool = False

    def __contains__(self, number: float) -> bool:
        return self.low <= number < self.high or (number == self.high and not self.half_open)

    def __str__(self) -> str:
        return f"{self.low:g} to {'below ' if self.half_open else ''}{self.high:g}"


@dataclass(frozen=True)
class Arity:
    """How many values an op reads: `least`, or that and any multiple of `step` more.

    Attributes:
        least: the smallest number.
        step: 0 where the number is fixed.
    """

    least: int = 1
    step: int = 0

    def __contains__(self, count: int) -> bool:
        more = count - self.least
        return more >= 0 and more % self.step == 0 if self.step else more == 0

    def __str__(self) -> str:
        return f"{self.least}, {self.least + self.step}, …" if self.step else str(self.least)


def same_shape(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    """That of the first value."""
    return inputs[0]


def no_products(_: Mapping[str, int]) -> int:
    """The cost of element-wise work, which is not counted."""
    return 0


@dataclass(frozen=True)
class OpSpec:
    """One op.

    Attributes:
        name: its name in files.
        summary: its formula.
        arity: how many values it reads.
        parameters: the tensors it owns.
        attributes: the numbers that a node must state, and where each must lie.
        shape: shape rule.
        products: dimensions that are, in numbers, the product of others; 1 where there are none.
        multiply_accumulates: cost rule, multiply-accumulates of matrix products per token (or per row after pooling).
        since: the version of the adapter format that first had it.
    """

    name: str
    summary: str
    arity: Arity = Arity()
    parameters: tuple[ParameterSpec, ...] = ()
    attributes: Mapping[str, Interval] = field(default_factory=dict)
    shape: ShapeRule = same_shape
    products: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    multiply_accumulates: CostRule = no_products
    since: str = FIRST_VERSION
