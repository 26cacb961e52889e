"""Rank of the difference between two weights, and its best factors of a smaller rank.

A merged LoRA is `W' = W + B A`, rounded to the type of the file: a difference of rank r and rounding errors. A merged
DoRA is `W' = m ⊙ (W + B A) / ‖W + B A‖` (Liu et al. 2024, §4), so that `W' − s ⊙ W` has rank r for one factor s per
output. For any other difference, the first singular vectors are the best approximation of their rank (Eckart and Young
1936).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

_MOST_EXACT = 2048
"""Largest smaller side of a matrix whose singular values are all computed; of larger ones, the first are."""

_MOST_RANK = 256
"""Number of singular values of larger matrices (Halko et al. 2011, with two power iterations)."""

_SCALED_ROUNDS = 40
"""Rounds of the fit of factors per output; each divides the error by 3 to 20."""

_SCALED_TAIL = 0.02
"""Largest share of the squared difference outside of the first quarter of its rank, if it comes from a DoRA. Fine-tuned
weights have ten times as much."""

_SCALED_PRECISION, _SCALED_PROGRESS = 2.0**-30, 0.9
"""Relative change of the factors at which the fit ends, and the share of the last change above which it ends, too."""

_SCALED_RANKS = 8
"""Ranks at which the fit is tried, each at a gap between singular values, after the fit of the rank before."""


@dataclass(frozen=True)
class WeightChange:
    """The difference of two weights [out, in], `W' − s ⊙ W`.

    Attributes:
        norm: its Frobenius norm.
        sizes: its singular values, largest first; of a large matrix only the first.
        rank: its rank apart from rounding errors; `None` if it has no lower rank than the matrix.
        scale: s [out]; `None` for 1.
    """

    norm: float
    sizes: Matrix
    rank: int | None
    scale: Matrix | None = None

    def captured(self, rank: int) -> float:
        """Return the norm of the best approximation of this rank, relative to the norm of the difference."""
        kept = float(np.linalg.norm(self.sizes[:rank]))
        return 1.0 if rank == self.rank or not self.norm else min(kept / self.norm, 1.0)


def weight_change(before: Matrix, after: Matrix, unit: float) -> WeightChange:
    """Return the difference of two weights, with factors per output if these lower its rank.

    Args:
        before: the weight of the base [out, in], as rounded to the type of the other one.
        after: the other weight.
        unit: the largest relative error of rounding to that type.
    """
    change = _change(before, after, unit)
    if change.rank is not None:
        return change
    return _scaled_change(before, after, unit) or change


def factors(before: Matrix, after: Matrix, change: WeightChange, rank: int) -> tuple[Matrix, Matrix]:
    """Return `up` [out, rank] and `down` [rank, in] of the best approximation of a difference, equally large."""
    difference = _difference(before, after, change.scale)
    sizes, vectors = _singular(difference)
    basis = vectors[:, :rank]
    root = np.sqrt(np.maximum(sizes[:rank], np.finfo(np.float64).tiny))
    if _wide(difference):
        return basis * root, (basis.T @ difference) / root[:, None]
    return (difference @ basis) / root, basis.T * root[:, None]


def _difference(before: Matrix, after: Matrix, scale: Matrix | None) -> Matrix:
    return after - (before if scale is None else scale[:, None] * before)


def _change(before: Matrix, after: Matrix, unit: float, scale: Matrix | None = None) -> WeightChange:
    difference = _difference(before, after, scale)
    norm = float(np.linalg.norm(difference))
    sizes, _ = _singular(difference)
    bound = _rounding(before, after, difference, unit)
    rank = int(np.count_nonzero(sizes > bound))
    out, width_in = difference.shape
    smaller = rank * (out + width_in) < out * width_in and (rank < len(sizes) or _is_whole(difference))
    return WeightChange(norm, sizes, rank if smaller else None, scale)


def _rounding(before: Matrix, after: Matrix, difference: Matrix, unit: float) -> float:
    """Return a bound for the largest singular value of the rounding errors in a difference.

    Independent errors of at most e per element have a spectral norm of about the largest norm of a row of e plus that
    of a column, over √3 (Latała 2005); measured: a third of the bound.
    """
    squares = (unit * (np.abs(before) + np.abs(after) + np.abs(difference))) ** 2
    return float(np.sqrt(squares.sum(axis=0).max()) + np.sqrt(squares.sum(axis=1).max()))


def _wide(matrix: Matrix) -> bool:
    return bool(matrix.shape[0] <= matrix.shape[1])


def _is_whole(matrix: Matrix) -> bool:
    """Return whether all singular values of a matrix are computed."""
    return bool(min(matrix.shape) <= _MOST_EXACT)


def _singular(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Return singular values, largest first, and their vectors on the smaller side of a matrix."""
    tall = matrix if _wide(matrix) else matrix.T
    if _is_whole(matrix):
        squares, vectors = np.linalg.eigh(tall @ tall.T)
        return np.sqrt(np.maximum(squares[::-1], 0)), vectors[:, ::-1]
    # 16 more columns than wanted (oversampling; Halko et al. 2011, §4.2)
    sketch = tall @ np.random.default_rng(0).standard_normal((tall.shape[1], _MOST_RANK + 16))
    for _ in range(2):
        # made orthogonal in between, or rounding would lose the small singular values
        sketch = tall @ (tall.T @ np.linalg.qr(sketch)[0])
    basis = np.linalg.qr(sketch)[0]
    inner, sizes, _ = np.linalg.svd(basis.T @ tall, full_matrices=False)
    return sizes[:_MOST_RANK], (basis @ inner)[:, :_MOST_RANK]


def _scaled_change(before: Matrix, after: Matrix, unit: float) -> WeightChange | None:
    """Return the difference with factors per output at which its rank is low, or `None`."""
    squares = (before**2).sum(axis=1)
    if not squares.all():
        return None
    scale = (after * before).sum(axis=1) / squares
    change = _change(before, after, unit, scale)
    if change.rank is not None:  # only scaled, as by a merged IA3
        return change
    quarter = max(len(change.sizes) // 4, 1)
    tail = change.norm**2 - float((change.sizes[:quarter] ** 2).sum())
    if tail > _SCALED_TAIL * change.norm**2:
        return None
    rank = 0
    for _ in range(_SCALED_RANKS):
        rank = _gap(change.sizes[: min(4 * rank, len(change.sizes) // 2) + 1 if rank else quarter + 2], rank)
        scale = _fitted_scale(before, after, scale, rank)
        change = _change(before, after, unit, scale)
        if change.rank is not None:
            return change
    return None


def _gap(sizes: Matrix, least: int) -> int:
    """Return the rank above `least` before the largest ratio of successive singular values, or `least`."""
    ratios = sizes[least:-1] / np.maximum(sizes[least + 1 :], np.finfo(np.float64).tiny)
    return least + 1 + int(np.argmax(ratios)) if len(ratios) else least


def _fitted_scale(before: Matrix, after: Matrix, scale: Matrix, rank: int) -> Matrix:
    """Return the factors at which `W' − s ⊙ W` is closest to this rank.

    Outside of the rows' space of B A, each row of W' is a multiple of the row of W. That space is known as well as s
    is, and s is fitted outside of it, in turns. If B A has a higher rank, s becomes more precise nevertheless, so that
    further singular values stand out.
    """
    last = np.inf
    for _ in range(_SCALED_ROUNDS):
        rows = _row_space(_difference(before, after, scale), rank)
        outside = before - (before @ rows) @ rows.T
        fitted = (after * outside).sum(axis=1) / np.maximum((outside**2).sum(axis=1), np.finfo(np.float64).tiny)
        moved = float(np.abs(fitted - scale).max() / np.abs(fitted).max())
        scale = fitted
        if moved <= _SCALED_PRECISION or moved > _SCALED_PROGRESS * last:
            break
        last = moved
    return scale


def _row_space(matrix: Matrix, rank: int) -> Matrix:
    """Return an orthonormal basis [in, rank] of the rows of a matrix, those of its first singular values."""
    _, vectors = _singular(matrix)
    basis = vectors[:, :rank]
    return np.linalg.qr(matrix.T @ basis)[0] if _wide(matrix) else basis
