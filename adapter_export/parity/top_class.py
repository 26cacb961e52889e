"""Whether two sets of logits choose the same class, and how close the call was where they do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Flip:
    """A row for which the two sides choose different classes.

    Attributes:
        row: which one, all axes but the last flattened.
        found: the candidate's class.
        expected: the reference's class.
        margin: how far apart the two classes' logits are in the reference.
        within_budget: whether an error within the budget on both logits explains it: margin ≤ 2 × budget.
    """

    row: int
    found: int
    expected: int
    margin: float
    within_budget: bool


@dataclass(frozen=True)
class TopClass:
    """Agreement of the highest logit.

    Attributes:
        rows: how many rows were looked at.
        agree: in how many of them both sides choose the same class.
        flips: the others.
    """

    rows: int
    agree: int
    flips: tuple[Flip, ...]


def compare_top_class(
    found: np.ndarray, expected: np.ndarray, absolute: float, where: npt.NDArray[np.bool_] | None = None
) -> TopClass:
    """Compare the argmax over the last axis, the first one where two are equal.

    Args:
        found: the candidate's logits [..., classes], without NaN.
        expected: the reference's, of the same shape.
        absolute: the allowed absolute error of a logit.
        where: the rows to look at, of a shape that broadcasts to that of `expected` and does not tell classes apart.
    """
    rows = expected.reshape(-1, expected.shape[-1]).astype(np.float64)
    top = rows.argmax(axis=1)
    other = found.reshape(rows.shape).argmax(axis=1)
    seen = np.ones(len(rows), bool) if where is None else np.broadcast_to(where, expected.shape)[..., 0].reshape(-1)
    differ = np.flatnonzero((top != other) & seen)
    flips = tuple(_flip(rows[row], int(row), int(other[row]), int(top[row]), absolute) for row in differ)
    count = int(seen.sum())
    return TopClass(count, count - len(flips), flips)


def _flip(logits: npt.NDArray[np.float64], row: int, found: int, expected: int, absolute: float) -> Flip:
    margin = float(logits[expected] - logits[found])
    return Flip(row, found, expected, margin, margin <= 2 * absolute)
