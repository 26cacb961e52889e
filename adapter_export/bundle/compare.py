"""Compare two arrays: every measure that a reader may want, and one verdict.

The verdict fails closed. A comparison passes only if shapes and types are equal, at least one finite element was
compared, NaN and Inf stand at the same places on both sides, and no error is over the budget.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from adapter_export.format.check_report import FlipRecord, TopClassRecord
from adapter_export.numerics.budget import Budget


def compare_top_class(
    found: np.ndarray, expected: np.ndarray, absolute: float, where: npt.NDArray[np.bool_] | None = None
) -> TopClassRecord:
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
    margins = rows[differ, top[differ]] - rows[differ, other[differ]]
    flips = tuple(
        FlipRecord(int(row), int(other[row]), int(top[row]), float(margin), bool(margin <= 2 * absolute))
        for row, margin in zip(differ, margins, strict=True)
    )
    count = int(seen.sum())
    return TopClassRecord(count, count - len(flips), flips)


# Distances between two vectors of finite numbers.

_LARGEST = float(np.finfo(np.float64).max)


def absolute_difference(found: np.ndarray, expected: np.ndarray) -> npt.NDArray[np.float64 | np.uint64]:
    """|found − expected| per element; float64 for floats, uint64 for integers, where no difference wraps around.

    A difference of two float64 that is beyond their range comes back as the largest float64.
    """
    if expected.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.minimum(np.abs(found.astype(np.float64) - expected.astype(np.float64)), _LARGEST)
    kind = np.uint64 if expected.dtype.kind in "ub" else np.int64
    first, second = (side.astype(kind) for side in (found, expected))
    high, low = np.maximum(first, second), np.minimum(first, second)
    return high.view(np.uint64) - low.view(np.uint64)  # modulo 2^64, which is exact as no difference reaches it


def relative_difference(found: np.ndarray, expected: np.ndarray) -> npt.NDArray[np.float64]:
    """|found − expected| / max(|found|, |expected|) per element, in [0, 2]; 0 where both are 0."""
    size = np.maximum(np.abs(found.astype(np.float64)), np.abs(expected.astype(np.float64)))
    difference = absolute_difference(found, expected).astype(np.float64)
    return np.divide(difference, size, out=np.zeros_like(size), where=size > 0)


def ulp_distance(found: np.ndarray, expected: np.ndarray) -> npt.NDArray[np.uint64]:
    """How many steps between neighbouring numbers of the type lie between two floats, per element.

    Counted across zero, where +0 and −0 are one number. IEEE 754 numbers of one sign are ordered as their bits are.
    """
    (first_negative, first), (second_negative, second) = _sign_and_size(found), _sign_and_size(expected)
    apart = np.maximum(first, second) - np.minimum(first, second)
    return np.where(first_negative == second_negative, apart, first + second)


def _sign_and_size(values: np.ndarray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint64]]:
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    sign = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    return (bits & sign) != 0, (bits & ~sign).astype(np.uint64)


def cosine(found: np.ndarray, expected: np.ndarray) -> float | None:
    """The cosine of the angle between two vectors, in float64; none if one of them is zero or empty.

    Both are first divided by a power of two near their largest element, so that no square overflows or vanishes.
    """
    first, second = _unit_scale(found), _unit_scale(expected)
    if first is None or second is None:
        return None
    length = float(np.sqrt(first @ first) * np.sqrt(second @ second))
    return float(np.clip((first @ second) / length, -1.0, 1.0))


def _unit_scale(values: np.ndarray) -> npt.NDArray[np.float64] | None:
    wide = values.astype(np.float64)
    largest = float(np.abs(wide).max(initial=0.0))
    return np.ldexp(wide, -np.frexp(largest)[1]) if largest else None


Number = int | float
_EXACT_KINDS = "iub"
_FLOAT_TYPES = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Masks:
    """Where one kind of non-finite value stands, as counts of elements.

    Attributes:
        agree: on both sides.
        only_found: in the candidate, where the reference has another value.
        only_expected: in the reference, where the candidate has another value.
    """

    agree: int = 0
    only_found: int = 0
    only_expected: int = 0

    @property
    def differ(self) -> int:
        """The elements on which the two sides do not agree."""
        return self.only_found + self.only_expected


@dataclass(frozen=True)
class Worst:
    """The element that is furthest from the reference; one that is NaN or Inf on one side only comes first.

    Attributes:
        index: its place in the output.
        found: the candidate's value.
        expected: the reference's value.
        ulp: the number of representable values between the two; none for integers, NaN and Inf.
    """

    index: tuple[int, ...]
    found: Number
    expected: Number
    ulp: int | None = None


@dataclass(frozen=True)
class Measures:
    """What the finite elements say.

    Attributes:
        absolute: the largest |found − expected|.
        relative: the largest |found − expected| / max(|found|, |expected|), at most 2, where 0/0 counts as 0.
        ulp: the largest number of representable values between the two sides, in their own type; none for integers.
            It is huge near zero, where it means little; that of the worst element is the one to look at.
        cosine: of the two sides as vectors; none where one of them is zero.
    """

    absolute: Number = 0
    relative: float = 0.0
    ulp: int | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What came out of one comparison.

    Attributes:
        elements: how many there were to compare.
        compared: how many were finite on both sides; the measures are over these.
        budget: the allowed absolute error and its reason; 0 for integers.
        measures: over the finite elements.
        nan: where NaN stands.
        inf: where +Inf and −Inf stand.
        worst: the worst element, if anything was compared.
        top_class: whether the highest logit is the same, where asked for.
        faults: why it does not pass, one short clause each; empty if it passes.
    """

    elements: int
    compared: int
    budget: Budget
    measures: Measures = field(default_factory=Measures)
    nan: Masks = field(default_factory=Masks)
    inf: Masks = field(default_factory=Masks)
    worst: Worst | None = None
    top_class: TopClassRecord | None = None
    faults: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the candidate computes what the reference computes."""
        return not self.faults

    @property
    def ratio(self) -> float:
        """Error over budget: 1 is the limit. An error where none is allowed counts as the largest number."""
        if not self.measures.absolute:
            return 0.0
        limit = self.budget.absolute
        return min(float(self.measures.absolute) / limit, sys.float_info.max) if limit else sys.float_info.max


def compare(
    found: np.ndarray,
    expected: np.ndarray,
    budget: Budget,
    *,
    where: npt.NDArray[np.bool_] | None = None,
    logits: bool = False,
) -> Comparison:
    """Compare a candidate with its reference.

    Args:
        found: the candidate, float16, float32, float64, an integer type or bool, of any shape.
        expected: the reference, of the same type and shape.
        budget: how far they may be apart; integers and bools must be equal whatever it says.
        where: the elements to look at, of a shape that broadcasts to that of `expected`; all of them if not given.
        logits: whether the last axis holds one number per class, so that the highest is compared too.
    """
    exact = expected.dtype.kind in _EXACT_KINDS
    budget = Budget(0.0, "integers are compared exactly") if exact else budget
    faults = tuple(_structure_faults(found, expected))
    if faults:
        return Comparison(expected.size, 0, budget, faults=faults)
    positions = np.flatnonzero(np.broadcast_to(True if where is None else where, expected.shape))
    first, second = found.reshape(-1)[positions], expected.reshape(-1)[positions]
    finite, differ = np.isfinite(first) & np.isfinite(second), first != second
    nan, inf = (np.isnan(first), np.isnan(second)), (np.isinf(first), np.isinf(second))
    comparison = Comparison(
        elements=first.size,
        compared=int(np.count_nonzero(finite)),
        budget=budget,
        measures=_measures(first[finite], second[finite]),
        nan=_masks(nan[0] & nan[1], nan[0] & ~nan[1], nan[1] & ~nan[0]),
        inf=_masks(inf[0] & ~differ, inf[0] & differ, inf[1] & differ),
        worst=_worst(found, expected, positions),
    )
    if logits and expected.ndim and expected.size and not comparison.nan.agree + comparison.nan.differ:
        comparison = replace(comparison, top_class=compare_top_class(found, expected, budget.absolute, where))
    return replace(comparison, faults=tuple(_faults(comparison)))


def missing(budget: Budget) -> Comparison:
    """The outcome for an output that the candidate does not return."""
    return Comparison(0, 0, budget, faults=("the output is missing",))


def unexpected(found: np.ndarray) -> Comparison:
    """The outcome for an output that the reference does not have."""
    return Comparison(found.size, 0, Budget(0.0, "there is no reference"), faults=("the reference has no such output",))


def _structure_faults(found: np.ndarray, expected: np.ndarray) -> Iterator[str]:
    if found.shape != expected.shape:
        yield f"the shape is {list(found.shape)}, not {list(expected.shape)}"
    if found.dtype != expected.dtype:
        yield f"the type is {found.dtype}, not {expected.dtype}"
    elif expected.dtype.kind not in _EXACT_KINDS and expected.dtype.name not in _FLOAT_TYPES:
        yield f"values of type {expected.dtype} cannot be compared"


def _masks(*masks: npt.NDArray[np.bool_]) -> Masks:
    return Masks(*(int(np.count_nonzero(mask)) for mask in masks))


def _measures(found: np.ndarray, expected: np.ndarray) -> Measures:
    """The measures over two vectors of finite numbers."""
    if not found.size:
        return Measures()
    absolute = absolute_difference(found, expected).max().item()
    relative = float(relative_difference(found, expected).max())
    ulp = int(ulp_distance(found, expected).max()) if expected.dtype.kind == "f" else None
    return Measures(absolute, relative, ulp, cosine(found, expected))


def _worst(found: np.ndarray, expected: np.ndarray, positions: npt.NDArray[np.int64]) -> Worst | None:
    if not positions.size:
        return None
    first, second = found.reshape(-1)[positions], expected.reshape(-1)[positions]
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore"):
        distance = np.where(same, 0.0, absolute_difference(first, second).astype(np.float64))
    place = positions[int(np.argmax(np.where(np.isfinite(distance), distance, np.inf)))]
    index = np.unravel_index(place, expected.shape)
    values = found[index], expected[index]
    ulp = int(ulp_distance(*values).max()) if expected.dtype.kind == "f" and np.isfinite(values).all() else None
    return Worst(tuple(map(int, index)), values[0].item(), values[1].item(), ulp)


def _faults(comparison: Comparison) -> Iterator[str]:
    """Why a comparison does not pass."""
    if not comparison.compared:
        yield "there is nothing to compare" if not comparison.elements else "no element is finite on both sides"
    for name, masks in (("NaN", comparison.nan), ("Inf", comparison.inf)):
        if masks.only_found:
            yield f"{masks.only_found} {name} where the reference has none"
        if masks.only_expected:
            yield f"{masks.only_expected} {name} of the reference are not there"
    absolute, limit = comparison.measures.absolute, comparison.budget.absolute
    if not absolute <= limit:
        yield f"the largest error {absolute:.3g} is over the budget {limit:.3g}"
