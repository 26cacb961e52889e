"""Comparison of arrays: cases that must never pass, and independence of the measures."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from tiers import examples

from adapter_export.bundle.proof import compare_arrays
from adapter_export.bundle.proof.compare_arrays import compare, missing, unexpected
from adapter_export.format.check_report import MasksRecord, WorstRecord
from adapter_export.numerics.budget import Budget

TENTH = Budget(0.1, "for tests")
UNLIMITED = Budget(sys.float_info.max, "for tests")
FLOATS = ("float16", "float32", "float64")


def finite_arrays(dtype: str, largest: float = 100.0) -> st.SearchStrategy[np.ndarray]:
    shapes = arrays_of.array_shapes(min_dims=0, max_dims=3, max_side=4)
    width = np.dtype(dtype).itemsize * 8
    elements = st.floats(-largest, largest, width=width, allow_subnormal=False)
    return arrays_of.arrays(np.dtype(dtype), shapes, elements=elements)


@pytest.mark.parametrize("dtype", FLOATS)
@examples(30)
@given(data=st.data())
def test_equal_arrays_pass_without_error(dtype: str, data: st.DataObject) -> None:
    array = data.draw(finite_arrays(dtype))
    comparison = compare(array, array.copy(), Budget(0.0, "exact"))
    assert comparison.passed
    assert comparison.compared == comparison.elements == array.size
    assert (comparison.absolute, comparison.relative, comparison.ulp) == (0, 0, 0)
    assert comparison.ratio == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
@examples(30)
@given(data=st.data())
def test_a_planted_value_that_is_not_finite_never_passes(dtype: str, value: float, data: st.DataObject) -> None:
    expected = data.draw(finite_arrays(dtype))
    found = expected.copy().reshape(-1)
    place = data.draw(st.integers(0, found.size - 1))
    found[place] = value
    comparison = compare(found.reshape(expected.shape), expected, UNLIMITED)
    assert not comparison.passed
    masks = comparison.nan if np.isnan(value) else comparison.inf
    assert masks == MasksRecord(0, 1, 0)
    assert comparison.worst is not None
    assert comparison.worst.index == np.unravel_index(place, expected.shape)


def test_a_value_that_is_finite_where_the_reference_is_not_fails() -> None:
    comparison = compare(np.float32([1, 2]), np.float32([1, np.nan]), UNLIMITED)
    assert comparison.faults == ("1 NaN of the reference are missing",)
    assert comparison.compared == 1


def test_equal_places_of_nan_and_inf_pass_and_are_counted() -> None:
    values = np.float32([np.nan, np.inf, -np.inf, 1.0])
    comparison = compare(values, values.copy(), TENTH)
    assert comparison.passed
    assert (comparison.nan, comparison.inf, comparison.compared) == (MasksRecord(1, 0, 0), MasksRecord(2, 0, 0), 1)


def test_infinities_of_different_sign_differ() -> None:
    comparison = compare(np.float32([np.inf, 1]), np.float32([-np.inf, 1]), UNLIMITED)
    assert not comparison.passed
    assert comparison.inf == MasksRecord(0, 1, 1)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3, 4)])
def test_empty_arrays_never_pass(shape: tuple[int, ...]) -> None:
    comparison = compare(np.zeros(shape, np.float32), np.zeros(shape, np.float32), UNLIMITED)
    assert comparison.faults == ("nothing to compare",)
    assert comparison.compared == 0


def test_only_nan_on_both_sides_is_nothing_compared() -> None:
    values = np.full(3, np.nan, np.float32)
    assert compare(values, values.copy(), UNLIMITED).faults == ("no element is finite on both sides",)


def test_empty_selections_never_pass() -> None:
    values = np.ones((2, 3), np.float32)
    assert not compare(values, values, TENTH, where=np.zeros((2, 3), bool)).passed


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (np.float32([1.0]), np.float32(1.0)),
        (np.ones((2, 3), np.float32), np.ones((3, 2), np.float32)),
        (np.ones((1, 3), np.float32), np.ones((2, 3), np.float32)),
        (np.ones(3, np.float64), np.ones(3, np.float32)),
        (np.ones(3, np.int32), np.ones(3, np.int64)),
        (np.ones(3, np.complex64), np.ones(3, np.complex64)),
        (np.array(["a"]), np.array(["a"])),
    ],
)
def test_shapes_and_types_must_match(found: np.ndarray, expected: np.ndarray) -> None:
    comparison = compare(np.asarray(found), np.asarray(expected), UNLIMITED)
    assert not comparison.passed
    assert comparison.compared == 0


def test_missing_and_unexpected_outputs_never_pass() -> None:
    assert not missing(UNLIMITED).passed
    assert not unexpected(np.ones(3)).passed


@pytest.mark.parametrize("dtype", FLOATS)
@examples(30)
@given(data=st.data())
def test_measures_are_symmetric(dtype: str, data: st.DataObject) -> None:
    first = data.draw(finite_arrays(dtype))
    elements = st.floats(-100, 100, width=np.dtype(dtype).itemsize * 8)
    second = data.draw(arrays_of.arrays(np.dtype(dtype), first.shape, elements=elements))
    one, other = compare(first, second, TENTH), compare(second, first, TENTH)
    assert (one.absolute, one.relative, one.ulp, one.cosine) == (
        other.absolute,
        other.relative,
        other.ulp,
        other.cosine,
    )


@pytest.mark.parametrize("power", [-7, 3, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scaling_by_powers_of_two_keeps_relative_measures(dtype: str, power: int) -> None:
    random = np.random.default_rng(0)
    expected = random.normal(size=(3, 5)).astype(dtype)
    found = expected + random.normal(size=(3, 5), scale=1e-3).astype(dtype)
    plain, scaled = (compare(np.ldexp(found, k), np.ldexp(expected, k), TENTH) for k in (0, power))
    assert scaled.ulp == plain.ulp
    assert scaled.relative == plain.relative
    assert scaled.cosine == pytest.approx(plain.cosine, rel=1e-15)
    assert scaled.absolute == np.ldexp(plain.absolute, power)


@pytest.mark.parametrize("dtype", FLOATS)
def test_ulp_counts_across_zero(dtype: str) -> None:
    zero = np.zeros(1, dtype)
    smallest = np.nextafter(zero, np.ones(1, dtype))
    assert compare(zero, -zero, TENTH).ulp == 0
    assert compare(smallest, -smallest, TENTH).ulp == 2
    assert compare(np.nextafter(smallest, np.ones(1, dtype)), -zero, TENTH).ulp == 2


@pytest.mark.parametrize("dtype", FLOATS)
def test_ulp_does_not_wrap_at_the_ends_of_the_range(dtype: str) -> None:
    largest = np.full(1, np.finfo(dtype).max, dtype)
    bits = int(largest.view(f"u{largest.dtype.itemsize}")[0])
    measures = compare(largest, -largest, UNLIMITED)
    assert measures.ulp == 2 * bits
    assert measures.relative == (1 if dtype == "float64" else 2), "a float64 difference stops at the largest float64"
    assert measures.cosine == -1
    assert np.isfinite(measures.absolute)


@given(dtype=st.sampled_from(FLOATS), data=st.data())
def test_one_step_is_one_ulp(dtype: str, data: st.DataObject) -> None:
    expected = data.draw(finite_arrays(dtype))
    found = np.nextafter(expected, np.array(np.inf, dtype)).astype(dtype)
    assert compare(found, expected, TENTH).ulp == 1


def test_the_extremes_of_int64_do_not_wrap() -> None:
    low, high = np.array([np.iinfo(np.int64).min]), np.array([np.iinfo(np.int64).max])
    comparison = compare(low, high, UNLIMITED)
    assert not comparison.passed
    assert comparison.absolute == 2**64 - 1
    assert comparison.worst == WorstRecord((0,), -(2**63), 2**63 - 1, None)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "uint64"])
def test_integers_are_compared_exactly_under_any_budget(dtype: str) -> None:
    expected = np.array([0, 1, 1], dtype)
    assert compare(expected.copy(), expected, UNLIMITED).passed
    comparison = compare(np.array([0, 1, 0], dtype), expected, UNLIMITED)
    assert not comparison.passed
    assert comparison.ulp is None
    assert comparison.ratio == sys.float_info.max


def test_large_integers_that_float64_cannot_tell_apart_differ() -> None:
    assert not compare(np.array([2**62 + 1]), np.array([2**62]), UNLIMITED).passed


def test_the_budget_is_the_limit_itself() -> None:
    expected = np.float64([0.0, 0.5])
    assert compare(expected + 0.25, expected, Budget(0.25, "for tests")).passed
    comparison = compare(expected + 0.25, expected, Budget(0.2, "for tests"))
    assert comparison.faults == ("the largest error 0.25 exceeds the budget 0.2",)
    assert comparison.ratio == pytest.approx(1.25)


def test_a_budget_that_is_no_number_lets_nothing_pass() -> None:
    values = np.ones(2, np.float32)
    assert not compare(values, values, Budget(float("nan"), "for tests")).passed


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "bool"])
@examples(30)
@given(data=st.data())
def test_blocks_give_the_measures_of_the_whole(dtype: str, data: st.DataObject) -> None:
    """Outputs as wide as a vocabulary are compared block by block; some have NaN, infinities, zeros and padding."""
    shape = data.draw(st.sampled_from([(1,), (7,), (2, 9), (3, 4, 5)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    power = data.draw(st.sampled_from([-200, 0, 200])) if dtype == "float64" else 0
    values = np.ldexp(rng.standard_normal((2, *shape)), power) * rng.integers(0, 3, (2, *shape))
    expected, found = values.astype(dtype)
    if expected.dtype.kind == "f" and data.draw(st.booleans()):
        expected.flat[0], found.flat[-1] = data.draw(st.sampled_from([(np.nan, np.inf), (np.inf, -np.inf)]))
    where = data.draw(st.sampled_from([None, rng.integers(0, 2, shape).astype(bool)]))
    whole = compare(found, expected, TENTH, where=where)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_arrays, "_BLOCK", data.draw(st.integers(1, 8)))
        parts = compare(found, expected, TENTH, where=where)
    assert replace(parts, cosine=None, worst=None) == replace(whole, cosine=None, worst=None)
    assert repr(parts.worst) == repr(whole.worst)  # its values may be NaN
    assert parts.cosine == pytest.approx(whole.cosine, abs=1e-12)


def test_the_worst_element_has_its_index_in_the_whole_output() -> None:
    expected = np.zeros((2, 3, 4), np.float32)
    found = expected.copy()
    found[0, 2, 1], found[1, 1, 3] = 9.0, -2.0
    real = np.array([[True, True, False], [True, True, True]])
    comparison = compare(found, expected, TENTH, where=real[..., None])
    assert comparison.worst == WorstRecord((1, 1, 3), -2.0, 0.0, 2**30)
    assert comparison.elements == 5 * 4
    assert compare(found, expected, TENTH, where=~real[..., None]).worst == WorstRecord(
        (0, 2, 1), 9.0, 0.0, int(np.float32(9).view(np.uint32))
    )


def test_the_top_class_is_compared_for_logits() -> None:
    expected = np.float32([[1.0, 0.9, -3], [0, 5, 0], [2, 1, 0]])
    found = np.float32([[0.94, 0.95, -3], [0, 5, 0], [2, 1, 0]])
    comparison = compare(found, expected, TENTH, logits=True)
    assert comparison.passed
    assert comparison.top_class is not None
    assert (comparison.top_class.rows, comparison.top_class.agree) == (3, 2)
    (flip,) = comparison.top_class.flips
    assert (flip.row, flip.found, flip.expected, flip.within_budget) == (0, 1, 0, True)
    assert flip.margin == pytest.approx(0.1, rel=1e-5)


def test_class_flips_beyond_the_budget_are_reported() -> None:
    comparison = compare(np.float32([[0, 1]]), np.float32([[1, 0]]), TENTH, logits=True)
    assert not comparison.passed
    assert comparison.top_class is not None
    assert not comparison.top_class.flips[0].within_budget


@given(st.data())
def test_a_flip_beyond_the_budget_never_passes(data: st.DataObject) -> None:
    expected = data.draw(arrays_of.arrays(np.float32, (3, 4), elements=st.floats(-10, 10, width=32)))
    found = data.draw(arrays_of.arrays(np.float32, (3, 4), elements=st.floats(-10, 10, width=32)))
    comparison = compare(found, expected, TENTH, logits=True)
    assert comparison.top_class is not None
    if not all(flip.within_budget for flip in comparison.top_class.flips):
        assert not comparison.passed


def test_the_cosine_of_nothing_and_of_zero_is_unknown() -> None:
    zeros = np.zeros(3, np.float32)
    assert compare(zeros, zeros, TENTH).cosine is None
    assert compare(zeros, zeros, TENTH).passed
