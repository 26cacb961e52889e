"""Compare two arrays: all error measures and one verdict.

The verdict fails closed. A comparison passes only if shapes and types match, at least one finite element was compared,
NaN and Inf occur at the same positions on both sides, and every error is within the budget.

The difference between a quantized bundle and the float32 base is measured without a budget or a verdict: it is the cost
of the precision, not an error.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden import Case
from adapter_export.bundle.report import BASE
from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import NothingComparedError
from adapter_export.format.check_report import (
    AgreementRecord,
    AgreementsRecord,
    BudgetRecord,
    ComparisonRecord,
    FlipRecord,
    MasksRecord,
    TopClassRecord,
    WorstRecord,
    verdict,
)
from adapter_export.numerics.budget import Budget
from adapter_export.numerics.runner import Runner, run
from adapter_export.numerics.sample_inputs import has_rows_per_token
from adapter_export.reporting import SILENT, Reporter

_LARGEST = float(np.finfo(np.float64).max)
_NOWHERE = MasksRecord(0, 0, 0)


def compare_top_class(
    found: np.ndarray, expected: np.ndarray, absolute: float, where: npt.NDArray[np.bool_] | None = None
) -> TopClassRecord:
    """Compare the argmax over the last axis of logits [..., classes] without NaN; the first class wins a tie.

    `absolute` is the allowed error of a logit; `where` broadcasts to the shape of `expected` and selects whole rows.
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


def absolute_difference(found: np.ndarray, expected: np.ndarray) -> npt.NDArray[np.float64 | np.uint64]:
    """|found − expected| per element; float64 for floats, uint64 for integers so that differences do not wrap.

    A float64 difference that overflows is clipped to the largest float64.
    """
    if expected.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.minimum(np.abs(found.astype(np.float64) - expected.astype(np.float64)), _LARGEST)
    kind = np.uint64 if expected.dtype.kind in "ub" else np.int64
    first, second = (side.astype(kind) for side in (found, expected))
    high, low = np.maximum(first, second), np.minimum(first, second)
    return high.view(np.uint64) - low.view(np.uint64)  # modulo 2^64: exact, because every difference is smaller


def relative_difference(found: np.ndarray, expected: np.ndarray) -> npt.NDArray[np.float64]:
    """|found − expected| / max(|found|, |expected|) per element, in [0, 2]; 0 where both are 0."""
    size = np.maximum(np.abs(found.astype(np.float64)), np.abs(expected.astype(np.float64)))
    difference = absolute_difference(found, expected).astype(np.float64)
    return np.divide(difference, size, out=np.zeros_like(size), where=size > 0)


def ulp_distance(found: np.ndarray, expected: np.ndarray) -> npt.NDArray[np.uint64]:
    """Return the distance between two floats in units in the last place, per element.

    Counted across zero, where +0 and −0 are one number. IEEE 754 numbers of the same sign sort like their bit patterns.
    """
    (first_negative, first), (second_negative, second) = _sign_and_size(found), _sign_and_size(expected)
    apart = np.maximum(first, second) - np.minimum(first, second)
    return np.where(first_negative == second_negative, apart, first + second)


def _sign_and_size(values: np.ndarray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint64]]:
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    sign = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    return (bits & sign) != 0, (bits & ~sign).astype(np.uint64)


def cosine(found: np.ndarray, expected: np.ndarray) -> float | None:
    """Return the cosine of the angle between two vectors, in float64; `None` if either is zero or empty.

    Each vector is first divided by a power of two near its largest element, so that squares cannot overflow or vanish.
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


def compare(
    found: np.ndarray,
    expected: np.ndarray,
    budget: Budget,
    *,
    where: npt.NDArray[np.bool_] | None = None,
    logits: bool = False,
) -> ComparisonRecord:
    """Compare a candidate with its reference: floats, integers or bools of any shape.

    Integers and bools must be equal regardless of the budget. `where` selects elements and broadcasts to the shape of
    `expected`. With `logits`, the last axis contains one number per class, and the top class is compared too.
    """
    exact = expected.dtype.kind in "iub"
    budget = Budget(0.0, "integers are compared exactly") if exact else budget
    structure = []
    if found.shape != expected.shape:
        structure.append(f"the shape is {list(found.shape)}, not {list(expected.shape)}")
    if found.dtype != expected.dtype:
        structure.append(f"the type is {found.dtype}, not {expected.dtype}")
    elif not exact and expected.dtype.name not in FLOAT_TYPES:
        structure.append(f"values of type {expected.dtype} cannot be compared")
    if structure:
        return _nothing(budget, *structure, elements=expected.size)
    positions = np.flatnonzero(np.broadcast_to(True if where is None else where, expected.shape))
    first, second = found.reshape(-1)[positions], expected.reshape(-1)[positions]
    finite, differ = np.isfinite(first) & np.isfinite(second), first != second
    compared, (one, other) = int(np.count_nonzero(finite)), (first[finite], second[finite])
    absolute = absolute_difference(one, other).max().item() if compared else 0
    is_nan, is_inf = (np.isnan(first), np.isnan(second)), (np.isinf(first), np.isinf(second))
    nan = _masks(is_nan[0] & is_nan[1], is_nan[0] & ~is_nan[1], is_nan[1] & ~is_nan[0])
    inf = _masks(is_inf[0] & ~differ, is_inf[0] & differ, is_inf[1] & differ)
    has_classes = logits and expected.ndim and expected.size and nan == _NOWHERE
    faults = []
    if not compared:
        faults.append("nothing to compare" if not first.size else "no element is finite on both sides")
    for name, masks in (("NaN", nan), ("Inf", inf)):
        if masks.only_found:
            faults.append(f"{masks.only_found} {name} where the reference is finite")
        if masks.only_expected:
            faults.append(f"{masks.only_expected} {name} of the reference are missing")
    if not absolute <= budget.absolute:
        faults.append(f"the largest error {absolute:.3g} exceeds the budget {budget.absolute:.3g}")
    return ComparisonRecord(
        verdict=verdict(not faults),
        faults=tuple(faults),
        elements=first.size,
        compared=compared,
        absolute=absolute,
        relative=float(relative_difference(one, other).max(initial=0)),
        ulp=int(ulp_distance(one, other).max()) if compared and not exact else None,
        cosine=cosine(one, other),
        budget=BudgetRecord(budget.absolute, budget.reason),
        ratio=_ratio(absolute, budget.absolute),
        nan=nan,
        inf=inf,
        worst=_worst(found, expected, positions),
        top_class=compare_top_class(found, expected, budget.absolute, where) if has_classes else None,
    )


def missing(budget: Budget) -> ComparisonRecord:
    """Return the result for an output that the candidate does not return."""
    return _nothing(budget, "the output is missing")


def unexpected(found: np.ndarray) -> ComparisonRecord:
    """Return the result for an output that the reference does not have."""
    budget = Budget(0.0, "no reference")
    return _nothing(budget, "the reference has no such output", elements=found.size)


def _nothing(budget: Budget, *faults: str, elements: int = 0) -> ComparisonRecord:
    """Return a failed result in which no element was compared."""
    return ComparisonRecord(
        verdict="failed",
        faults=faults,
        elements=elements,
        compared=0,
        absolute=0,
        relative=0.0,
        ulp=None,
        cosine=None,
        budget=BudgetRecord(budget.absolute, budget.reason),
        ratio=0.0,
        nan=_NOWHERE,
        inf=_NOWHERE,
        worst=None,
        top_class=None,
    )


def _ratio(error: float, limit: float) -> float:
    """Return error / budget. An error with a budget of 0 counts as the largest float."""
    if not error:
        return 0.0
    return min(float(error) / limit, sys.float_info.max) if limit else sys.float_info.max


def _masks(*masks: npt.NDArray[np.bool_]) -> MasksRecord:
    return MasksRecord(*(int(np.count_nonzero(mask)) for mask in masks))


def _worst(found: np.ndarray, expected: np.ndarray, positions: npt.NDArray[np.int64]) -> WorstRecord | None:
    """Return the element with the largest error; elements that are NaN or Inf on one side only come first."""
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
    return WorstRecord(tuple(map(int, index)), values[0].item(), values[1].item(), ulp)


Sides = list[tuple[np.ndarray, np.ndarray]]
"""Outputs of the bundle and of the base, one array per case."""


@dataclass(frozen=True)
class Original:
    """The base before its precision changed, and the inputs for both sides; `inputs` describes them for people.

    A bundle that is not batch-invariant runs each case as one batch.
    """

    runner: Runner
    cases: Sequence[Case]
    inputs: str


def agreements(
    bundle: OpenedBundle, names: Sequence[str | None], original: Original, reporter: Reporter = SILENT
) -> AgreementsRecord:
    """Run the bundle and the float32 base on the same inputs, and return the differences.

    Raises:
        NothingComparedError: there are no inputs.
        InputError: one of the two cannot run.
    """
    if not original.cases:
        raise NothingComparedError("no inputs to compare precisions on")
    found = tuple(each for name in names for each in _of_adapter(bundle, name, original, reporter))
    return AgreementsRecord(original.runner.description, original.inputs, found)


def _of_adapter(
    bundle: OpenedBundle, name: str | None, original: Original, reporter: Reporter
) -> Iterator[AgreementRecord]:
    session, record = bundle.runtime_session(), None if name is None else bundle.record(name)
    output, adapter = (None, None) if record is None else (record.output, bundle.source(record.name))
    sides: dict[str, Sides] = {}
    for case in original.cases:
        expected = run(original.runner, case.arrays, adapter, bundle.base_outputs, output)
        found = session.run(case.arrays, name, allow_padding=True)
        for each, value in expected.items():
            pair = (found[each], value)
            if case.real is not None and has_rows_per_token(value.shape, case.real):  # outputs at padding are undefined
                pair = (found[each][case.real], value[case.real])
            sides.setdefault(each, []).append(pair)
        reporter.step(f"{name or BASE}, {case.name}: against float32")
    for each, pairs in sides.items():
        if pairs[0][1].dtype.kind == "f":
            is_logits = (
                record is not None and record.task is not None and record.task.kind.picks_largest and each == output
            )
            yield _agreement(name, each, pairs, is_logits=is_logits)


def _agreement(adapter: str | None, name: str, sides: Sides, *, is_logits: bool) -> AgreementRecord:
    cosines = [cosine(found.ravel(), expected.ravel()) for found, expected in sides]
    agree = sum(int((found.argmax(-1) == expected.argmax(-1)).sum()) for found, expected in sides)
    return AgreementRecord(
        adapter,
        name,
        rows=sum(math.prod(expected.shape[:-1]) if is_logits else len(expected) for _, expected in sides),
        agree=agree if is_logits else None,
        absolute=max(float(np.abs(found - expected).max(initial=0)) for found, expected in sides),
        scale=max(float(np.abs(expected).max(initial=0)) for _, expected in sides),
        cosine=min((value for value in cosines if value is not None), default=None),
    )
