"""Weights of a model compared with those of a graph that was made from it: joined, split, transposed or rounded.

Both models list each use of a weight in the order of evaluation, matrices as [out, in]. The rows of all matrices with
one input width then form one stream, and the numbers of all vectors another. Joining or splitting layers that read the
same values, such as query, key and value, moves the borders between matrices and leaves the streams as they are. So the
streams are compared row by row, and every row of either model has exactly one counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adapter_export.errors import BaseModelError

Numbers = npt.NDArray[np.float32]

SATURATED_STEPS = 2.0
"""The largest excess of a number over the range of its block, in steps.

A symmetric quantizer puts the largest magnitude of a block on -8 steps, which leaves 7 on the other side: an excess of
up to 1 step, rounding included. The k-quant search may shrink the range by 2 of 15 steps.
"""

_ELEMENTS = 2**22
"""Numbers compared at a time: 16 MiB in float32."""

_SHOWN = 3


@dataclass(frozen=True)
class StoredRows:
    """Rows of a weight as a graph computes with them, [rows, width].

    Attributes:
        values: in float32.
        half: half a rounding step at each number, broadcastable to `values`; 0 where numbers are stored exactly.
        outward: 1 or -1 where a number is the largest or smallest of its block's range, else 0; `None` for
            floats.
    """

    values: Numbers
    half: Numbers
    outward: npt.NDArray[np.int8] | None = None

    def saturated(self, trained: Numbers) -> npt.NDArray[np.bool_]:
        """Return a mask of trained numbers more than half a step beyond the range of their block."""
        error = trained - self.values
        beyond = np.zeros(error.shape, np.bool_) if self.outward is None else error * self.outward > self.half
        return np.asarray(beyond, np.bool_)


@dataclass(frozen=True)
class WeightUse:
    """A use of a weight by one node of a model.

    Attributes:
        name: the tensor.
        rows: the number of its rows; of a vector, of its numbers.
        width: the numbers in a row; `None` for a vector.
        read: returns the rows from one number to another, [rows, width], or [rows, 1] for a vector.
        stored: the type in which it is stored, in words.
        is_neutral: a norm's factor that is 1 everywhere, which a model without such factors does not have.
    """

    name: str
    rows: int
    width: int | None
    read: Callable[[int, int], StoredRows]
    stored: str = "float32"
    is_neutral: bool = False


@dataclass(frozen=True)
class Counterpart:
    """Rows of a stored weight and the trained rows that they were made from.

    Attributes:
        weight: the stored tensor.
        start: its first row.
        rows: the number of rows.
        trained: the trained tensor.
        trained_start: its first row.
        stored: the type in which the weight is stored, in words.
        deviation: the largest difference between a stored and a trained number.
        steps: the same in rounding steps, saturated elements apart; 0 for float32.
        saturated: the number of elements beyond the range of their block, which became its end.
        saturated_steps: the largest difference of those, in rounding steps.
    """

    weight: str
    start: int
    rows: int
    trained: str
    trained_start: int
    stored: str
    deviation: float
    steps: float
    saturated: int = 0
    saturated_steps: float = 0.0


@dataclass(frozen=True)
class _Fault:
    """Rows that are no rounding of their counterparts: how many numbers are wrong, and by how much."""

    at: Counterpart
    wrong: int
    numbers: int
    deviation: float
    steps: float

    def __str__(self) -> str:
        far = f"{self.deviation:.3g}" + (f", {self.steps:.3g} rounding steps" if self.steps else "")
        return (
            f"`{self.at.weight}` is not `{self.at.trained}`: {self.wrong:,} of {self.numbers:,} differ, by up to {far}"
        )


def match_weights(stored: Sequence[WeightUse], trained: Sequence[WeightUse], where: object) -> tuple[Counterpart, ...]:
    """Pair the weights of a graph with those of the trained model, each number within its rounding.

    Args:
        stored: the uses of weights in the graph, in the order of evaluation.
        trained: those in the trained model.
        where: the graph, for messages.

    Raises:
        BaseModelError: a weight is no rounding of its counterpart, or has none; the message has its name and deviation.
    """
    counterparts: list[Counterpart] = []
    faults: list[_Fault] = []
    for width in dict.fromkeys(use.width for use in (*stored, *trained)):
        ours, theirs = _Stream(stored, width), _Stream(trained, width)
        while (rest := ours.rest) is not None and (other := theirs.rest) is not None:
            pair = _compared(rest, other)
            if isinstance(pair, _Fault) and rest.use.is_neutral and rest.start == 0:
                ours.advance(rest.use.rows)
                continue
            if isinstance(pair, _Fault):
                faults.append(pair)
            counterparts.append(pair.at if isinstance(pair, _Fault) else pair)
            ours.advance(counterparts[-1].rows)
            theirs.advance(counterparts[-1].rows)
        while (rest := ours.rest) is not None and rest.use.is_neutral:
            ours.advance(rest.use.rows)
        left = [
            f"{words} `{rest.use.name}`"
            for words, rest in (("the graph's", ours.rest), ("the model's", theirs.rest))
            if rest
        ]
        if left and not faults:
            raise _differs(where, f"{' and '.join(left)} without a counterpart, {_shape(width)}")
    if faults:
        more = len(faults) - _SHOWN
        listed = "; ".join(map(str, faults[:_SHOWN])) + (f"; and {more} more" if more > 0 else "")
        raise _differs(where, listed)
    return tuple(counterparts)


def _shape(width: int | None) -> str:
    return "a vector" if width is None else f"with rows of {width}"


def _differs(where: object, difference: str) -> BaseModelError:
    return BaseModelError(
        "does not contain the weights of the trained model",
        where=where,
        found=difference,
        expected="each weight within half a rounding step of the trained one",
        fix="pass the model that the graph was built from, captured with its language head",
    )


@dataclass(frozen=True)
class _Rest:
    """The rest of a use: its rows from `start` on."""

    use: WeightUse
    start: int

    @property
    def rows(self) -> int:
        return self.use.rows - self.start


class _Stream:
    """The uses with one width in order, and the number compared so far."""

    def __init__(self, uses: Iterable[WeightUse], width: int | None) -> None:
        self._uses: Iterator[WeightUse] = iter([use for use in uses if use.width == width and use.rows])
        self.rest: _Rest | None = None
        self.advance(0)

    def advance(self, rows: int) -> None:
        """Step over rows of the current use, and on to the next one at its end."""
        if self.rest is not None and rows < self.rest.rows:
            self.rest = _Rest(self.rest.use, self.rest.start + rows)
            return
        use = next(self._uses, None)
        self.rest = None if use is None else _Rest(use, 0)


def _compared(first: _Rest, other: _Rest) -> Counterpart | _Fault:
    """Compare the rows up to the end of the shorter of two uses."""
    rows, width = min(first.rows, other.rows), first.use.width or 1
    deviation = steps = saturated_steps = wrong_deviation = wrong_steps = 0.0
    saturated = wrong = 0
    for start in range(0, rows, step := max(1, _ELEMENTS // width)):
        count = min(step, rows - start)
        ours = first.use.read(first.start + start, first.start + start + count)
        theirs = other.use.read(other.start + start, other.start + start + count).values
        error, beyond = np.abs(ours.values - theirs), ours.saturated(theirs)
        with np.errstate(divide="ignore", invalid="ignore"):
            in_steps = np.where(ours.half > 0, error / (2 * ours.half), 0)
        # `<=` in parentheses is false for NaN, which then counts as outside
        outside = ~(error <= ours.half * np.where(beyond, np.float32(2 * SATURATED_STEPS), np.float32(1)))
        if outside.any():
            wrong += int(np.count_nonzero(outside))
            wrong_deviation = max(wrong_deviation, _largest(error[outside]))
            wrong_steps = max(wrong_steps, _largest(in_steps[outside]))
        deviation = max(deviation, _largest(error))
        steps = max(steps, _largest(in_steps[~beyond]))
        saturated += int(np.count_nonzero(beyond))
        saturated_steps = max(saturated_steps, _largest(in_steps[beyond]))
    counterpart = Counterpart(
        first.use.name,
        first.start,
        rows,
        other.use.name,
        other.start,
        first.use.stored,
        deviation,
        steps,
        saturated,
        saturated_steps,
    )
    return _Fault(counterpart, wrong, rows * width, wrong_deviation, wrong_steps) if wrong else counterpart


def _largest(numbers: npt.NDArray[Any]) -> float:
    return float(np.nan_to_num(numbers.max(initial=0), nan=np.inf))
