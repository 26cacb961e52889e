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
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Case
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
"""Replaces a difference of two float64 that overflows, so that it is not mistaken for an infinite result."""

_NOWHERE = MasksRecord(0, 0, 0)

_BLOCK = 1 << 17
"""Elements that are compared at a time: their float64 copies stay in the processor's cache, and outputs as wide as a
vocabulary are not copied."""

_NO_EXPONENT = np.int32(-4096)
"""Binary exponent below that of every number, for a vector of zeros."""


def compare_top_class(
    actual: np.ndarray, expected: np.ndarray, absolute: float, where: npt.NDArray[np.bool_] | None = None
) -> TopClassRecord:
    """Compare the argmax over the last axis of logits [..., classes] without NaN; the first class wins a tie.

    `absolute` is the allowed error of a logit; `where` broadcasts to the shape of `expected` and selects whole rows.
    """
    rows = expected.reshape(-1, expected.shape[-1])
    top = rows.argmax(axis=1)
    other = actual.reshape(rows.shape).argmax(axis=1)
    seen = np.ones(len(rows), bool) if where is None else np.broadcast_to(where, expected.shape)[..., 0].reshape(-1)
    differ = np.flatnonzero((top != other) & seen)
    margins = rows[differ, top[differ]].astype(np.float64) - rows[differ, other[differ]]
    flips = tuple(
        # twice, because both logits may be off
        FlipRecord(int(row), int(other[row]), int(top[row]), float(margin), bool(margin <= 2 * absolute))
        for row, margin in zip(differ, margins, strict=True)
    )
    count = int(seen.sum())
    return TopClassRecord(count, count - len(flips), flips)


def absolute_difference(actual: np.ndarray, expected: np.ndarray) -> npt.NDArray[np.float64 | np.uint64]:
    """|found − expected| per element; float64 for floats, uint64 for integers so that differences do not wrap.

    A float64 difference that overflows is clipped to the largest float64.
    """
    if expected.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.minimum(np.abs(actual.astype(np.float64) - expected.astype(np.float64)), _LARGEST)
    kind = np.uint64 if expected.dtype.kind in "ub" else np.int64
    first, second = (side.astype(kind) for side in (actual, expected))
    high, low = np.maximum(first, second), np.minimum(first, second)
    return high.view(np.uint64) - low.view(np.uint64)  # modulo 2^64: exact, because every difference is smaller


def relative_difference(actual: np.ndarray, expected: np.ndarray) -> npt.NDArray[np.float64]:
    """|found − expected| / max(|found|, |expected|) per element, in [0, 2]; 0 where both are 0."""
    size = np.maximum(np.abs(actual.astype(np.float64)), np.abs(expected.astype(np.float64)))
    difference = absolute_difference(actual, expected).astype(np.float64)
    return np.divide(difference, size, out=np.zeros_like(size), where=size > 0)


def ulp_distance(actual: np.ndarray, expected: np.ndarray) -> npt.NDArray[np.uint64]:
    """Return the distance between two floats in units in the last place, per element.

    Counted across zero, where +0 and −0 are one number. IEEE 754 numbers of the same sign sort like their bit patterns.
    """
    (first_negative, first), (second_negative, second) = _sign_and_size(actual), _sign_and_size(expected)
    apart = np.maximum(first, second) - np.minimum(first, second)
    return np.where(first_negative == second_negative, apart, first + second)


def _sign_and_size(values: np.ndarray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint64]]:
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    sign = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    return (bits & sign) != 0, (bits & ~sign).astype(np.uint64)


def cosine(actual: np.ndarray, expected: np.ndarray) -> float | None:
    """Return the cosine of the angle between two vectors, in float64; `None` if either is zero or empty."""
    products = _Products()
    for _, first, second in _blocks(actual, expected):
        products.add(first, second)
    return products.cosine


class _Products:
    """Sums of the squares and products of two vectors, block by block.

    Each vector is divided by a power of two near its largest element, so that squares cannot overflow or vanish.
    """

    def __init__(self) -> None:
        self._exponents = np.full(2, _NO_EXPONENT, np.int32)
        self._sums = np.zeros((2, 2))

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        """Add a block of finite elements of both vectors."""
        if not first.size:
            return
        pair = np.stack([first, second]).astype(np.float64)
        largest = np.abs(pair).max(axis=1)
        exponents = np.maximum(self._exponents, np.where(largest > 0, np.frexp(largest)[1], _NO_EXPONENT))
        shift = self._exponents - exponents
        scaled = np.ldexp(pair, -exponents[:, None])
        self._sums = np.ldexp(self._sums, shift[:, None] + shift) + scaled @ scaled.T
        self._exponents = exponents

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between the vectors; `None` if either is zero or empty."""
        squares = self._sums.diagonal()
        if not squares.all():
            return None
        return float(np.clip(self._sums[0, 1] / np.prod(np.sqrt(squares)), -1.0, 1.0))


def compare(
    actual: np.ndarray,
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
    if actual.shape != expected.shape:
        structure.append(f"the shape is {list(actual.shape)}, not {list(expected.shape)}")
    if actual.dtype != expected.dtype:
        structure.append(f"the type is {actual.dtype}, not {expected.dtype}")
    elif not exact and expected.dtype.name not in FLOAT_TYPES:
        structure.append(f"values of type {expected.dtype} cannot be compared")
    if structure:
        return _nothing(budget, *structure, elements=expected.size)
    measures = _Measures(exact=exact)
    for positions, first, second in _blocks(actual, expected, where):
        measures.add(positions, first, second)
    absolute, nan, inf = measures.absolute, MasksRecord(*measures.nan.tolist()), MasksRecord(*measures.inf.tolist())
    has_classes = logits and expected.ndim and expected.size and nan == _NOWHERE
    faults = []
    if not measures.compared:
        faults.append("no element is finite on both sides" if measures.elements else "nothing to compare")
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
        elements=measures.elements,
        compared=measures.compared,
        absolute=absolute,
        relative=measures.relative,
        ulp=measures.ulp if measures.compared and not exact else None,
        cosine=measures.products.cosine,
        budget=BudgetRecord(budget.absolute, budget.reason),
        ratio=_ratio(absolute, budget.absolute),
        nan=nan,
        inf=inf,
        worst=None if measures.worst is None else _worst(actual, expected, measures.worst),
        top_class=compare_top_class(actual, expected, budget.absolute, where) if has_classes else None,
    )


def missing(budget: Budget) -> ComparisonRecord:
    """Return the result for an output that the candidate does not return."""
    return _nothing(budget, "the output is missing")


def unexpected(actual: np.ndarray) -> ComparisonRecord:
    """Return the result for an output that the reference does not have."""
    budget = Budget(0.0, "no reference")
    return _nothing(budget, "the reference has no such output", elements=actual.size)


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


def _blocks(
    actual: np.ndarray, expected: np.ndarray, where: npt.NDArray[np.bool_] | None = None
) -> Iterator[tuple[npt.NDArray[np.int64], np.ndarray, np.ndarray]]:
    """Yield some elements of both sides at a time, in order, and their positions in the flat arrays."""
    first, second = actual.reshape(-1), expected.reshape(-1)
    chosen = None if where is None else np.broadcast_to(where, expected.shape).reshape(-1)
    for start in range(0, expected.size, _BLOCK):
        block = slice(start, min(start + _BLOCK, expected.size))
        if chosen is None:
            yield np.arange(block.start, block.stop), first[block], second[block]
        else:
            positions = start + np.flatnonzero(chosen[block])
            yield positions, first[positions], second[positions]


class _Measures:
    """Error measures of two arrays, block by block.

    Attributes:
        elements: number of elements so far.
        compared: how many of them are finite on both sides.
        absolute: largest absolute error of these; an int if they are compared exactly.
        relative: largest relative error of these.
        ulp: largest distance of these in units in the last place, of floats.
        products: gives the cosine between them.
        nan: counts of NaN on both sides, on the first only, and on the second only.
        inf: the same for infinities, of which different ones count on both sides.
        worst: position of the element with the largest error; elements that are finite on one side only come first.
    """

    def __init__(self, *, exact: bool) -> None:
        self.elements = self.compared = self.ulp = 0
        self.absolute: float = 0
        self.relative = 0.0
        self.products = _Products()
        self.nan, self.inf = np.zeros(3, int), np.zeros(3, int)
        self.worst: int | None = None
        self._exact, self._farthest = exact, -1.0

    def add(self, positions: npt.NDArray[np.int64], first: np.ndarray, second: np.ndarray) -> None:
        """Add a block of elements of both sides."""
        if not first.size:
            return
        finite, differ = np.isfinite(first) & np.isfinite(second), first != second
        if not finite.all():
            is_nan, is_inf = (np.isnan(first), np.isnan(second)), (np.isinf(first), np.isinf(second))
            self.nan += _counts(is_nan[0] & is_nan[1], is_nan[0] & ~is_nan[1], is_nan[1] & ~is_nan[0])
            self.inf += _counts(is_inf[0] & ~differ, is_inf[0] & differ, is_inf[1] & differ)
        elements, others = (first, second) if finite.all() else (first[finite], second[finite])
        difference = absolute_difference(elements, others)
        self.elements += first.size
        self.compared += elements.size
        if elements.size:
            self.absolute = max(self.absolute, difference.max().item())
            self.relative = max(self.relative, float(relative_difference(elements, others).max()))
            if not self._exact:
                self.ulp = max(self.ulp, int(ulp_distance(elements, others).max()))
            self.products.add(elements, others)
        distance = np.where(differ & ~(np.isnan(first) & np.isnan(second)), np.inf, 0.0)
        distance[finite] = difference
        farthest = int(np.argmax(distance))
        if distance[farthest] > self._farthest:
            self.worst, self._farthest = int(positions[farthest]), float(distance[farthest])


def _counts(*masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return np.array([np.count_nonzero(mask) for mask in masks])


def _worst(actual: np.ndarray, expected: np.ndarray, position: int) -> WorstRecord:
    """Return the element at a position of the flat arrays."""
    index = np.unravel_index(position, expected.shape)
    values = actual[index], expected[index]
    ulp = int(ulp_distance(*values).max()) if expected.dtype.kind == "f" and np.isfinite(values).all() else None
    return WorstRecord(tuple(map(int, index)), values[0].item(), values[1].item(), ulp)


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
    records = tuple(each for name in names for each in _of_adapter(bundle, name, original, reporter))
    return AgreementsRecord(original.runner.description, original.inputs, records)


def _of_adapter(
    bundle: OpenedBundle, name: str | None, original: Original, reporter: Reporter
) -> Iterator[AgreementRecord]:
    session, record = bundle.runtime_session(), None if name is None else bundle.record(name)
    output, adapter = (None, None) if record is None else (record.output, bundle.source(record.name))
    agreement: dict[str, AgreementRecord] = {}
    for case in original.cases:
        expected = run(original.runner, case.arrays, adapter, bundle.base_outputs, output)
        outputs = session.run(case.arrays, name, allow_padding=True)
        for each, value in expected.items():
            if value.dtype.kind != "f":
                continue
            pair = (outputs[each], value)
            if case.real is not None and has_rows_per_token(value.shape, case.real):  # outputs at padding are undefined
                pair = (outputs[each][case.real], value[case.real])
            is_logits = (
                record is not None and record.task is not None and record.task.kind.picks_largest and each == output
            )
            measured = _agreement(name, each, *pair, is_logits=is_logits)
            agreement[each] = _together(agreement[each], measured) if each in agreement else measured
        reporter.step(f"{name or BASE}, {case.name}: against float32")
    yield from agreement.values()


def _agreement(
    adapter: str | None, name: str, actual: np.ndarray, expected: np.ndarray, *, is_logits: bool
) -> AgreementRecord:
    return AgreementRecord(
        adapter,
        name,
        rows=math.prod(expected.shape[:-1]) if is_logits else len(expected),
        agree=int((actual.argmax(-1) == expected.argmax(-1)).sum()) if is_logits else None,
        absolute=float(np.abs(actual - expected).max(initial=0)),
        scale=float(np.abs(expected).max(initial=0)),
        cosine=cosine(actual, expected),
    )


def _together(some: AgreementRecord, more: AgreementRecord) -> AgreementRecord:
    return replace(
        some,
        rows=some.rows + more.rows,
        agree=None if some.agree is None or more.agree is None else some.agree + more.agree,
        absolute=float(np.maximum(some.absolute, more.absolute)),  # unlike `max`, it keeps NaN
        scale=float(np.maximum(some.scale, more.scale)),
        cosine=min((cosine for cosine in (some.cosine, more.cosine) if cosine is not None), default=None),
    )
