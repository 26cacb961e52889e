"""Sketches of wide outputs, and inputs that a seed describes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adapter_export.format.sketch import SketchRecord, filled, mix, read_fill, sketched

RECORD = SketchRecord(axes=2, largest=3, columns=4, moduli=(5, 7))


def mixed(number: int) -> int:
    """The hash of the specification, in Python's integers."""
    number ^= number >> 16
    number = number * 0x7FEB352D % 2**32
    number ^= number >> 15
    number = number * 0x846CA68B % 2**32
    return number ^ number >> 16


def by_the_specification(output: np.ndarray, record: SketchRecord) -> list[list[float]]:
    """The sketch of each row, number by number."""
    rows = output.reshape(math.prod(output.shape[: record.axes]), -1).astype(float).tolist()
    sketches = []
    for at, row in enumerate(rows):
        numbers = sorted(row, reverse=True)[: record.largest]
        numbers += [row[mixed(at * record.columns + j) % len(row)] for j in range(record.columns)]
        for turn, modulus in enumerate(record.moduli):
            signs = [-1 if mixed((mixed(turn + 1) + column) % 2**32) >> 31 else 1 for column in range(len(row))]
            root = 2 * math.sqrt(math.ceil(len(row) / modulus))
            numbers += [
                sum(signs[c] * row[c] for c in range(residue, len(row), modulus)) / root for residue in range(modulus)
            ]
        sketches.append(numbers)
    return sketches


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_hash_equals_the_specification() -> None:
    numbers = [0, 1, 2, 77, 2**31, 2**32 - 1]
    assert mix(np.array(numbers, np.uint32)).tolist() == [mixed(number) for number in numbers]


@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 3, 35), (3, 2, 101), (2, 2, 4, 5)])
def test_sketch_equals_the_specification(shape: tuple[int, ...]) -> None:
    output = drawn(*shape)
    sketch = RECORD.of(output)
    assert sketch.shape == RECORD.shape_of(shape)
    assert sketch.dtype == np.float32
    expected = by_the_specification(output, RECORD)
    np.testing.assert_allclose(sketch.reshape(len(expected), -1), expected, atol=1e-6)


def test_narrow_row_repeats_its_smallest_element() -> None:
    sketch = SketchRecord(1, 4, 0, (2,)).of(np.array([[1.0, 3.0]], np.float32))
    assert sketch[0, :4].tolist() == [3, 1, 1, 1]


VOCABULARY = 151_936
WIDE = SketchRecord(axes=2, largest=8, columns=64, moduli=(251, 256))


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return drawn(1, 2, VOCABULARY)


class TestSensitivity:
    """Errors that a sketch shows, in multiples of a budget of 1 for each element."""

    def change(self, before: np.ndarray, after: np.ndarray) -> float:
        return float(np.abs(WIDE.of(after) - WIDE.of(before)).max())

    def test_rounding_within_the_budget_stays_within_it(self, logits: np.ndarray) -> None:
        rng = np.random.default_rng(1)
        errors = rng.standard_normal(logits.shape)
        errors /= np.abs(errors).max()
        assert self.change(logits, (logits + errors).astype(np.float32)) <= 1

    @pytest.mark.parametrize("column", [0, 1, 77_777, VOCABULARY - 1])
    def test_wrong_value_of_any_column_shows(self, logits: np.ndarray, column: int) -> None:
        wrong = logits.copy()
        wrong[0, 1, column] -= 60
        assert self.change(logits, wrong) > 1

    def test_column_that_becomes_the_largest_shows_at_once(self, logits: np.ndarray) -> None:
        wrong = logits.copy()
        wrong[0, 1, 77_777] = logits[0, 1].max() + 1.01
        assert self.change(logits, wrong) > 1

    def test_sketches_reveal_exchanged_columns(self, logits: np.ndarray) -> None:
        far = 1000 * logits
        wrong = far.copy()
        wrong[0, 0, [5, 5 + 251 * 256]] = far[0, 0, [5 + 251 * 256, 5]]  # in the same sums of both moduli
        assert self.change(far, wrong) > 1
        wrong = np.roll(logits, 1, axis=-1)
        assert self.change(logits, wrong) > 1

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_number_that_is_not_finite_reaches_the_sums(self, logits: np.ndarray, value: float) -> None:
        wrong = logits.copy()
        wrong[0, 0, 99] = value
        assert not np.isfinite(WIDE.of(wrong)[0, 0, 72:]).all()
        assert np.isfinite(WIDE.of(wrong)[0, 1]).all()


def test_only_outputs_with_a_record_and_enough_axes_are_condensed() -> None:
    outputs = {"logits": drawn(1, 2, 35), "hidden": drawn(1, 2, 3), "flat": drawn(4)}
    stored = sketched(outputs, {"logits": RECORD, "flat": RECORD})
    assert stored["logits"].shape == (1, 2, RECORD.width)
    assert stored["hidden"] is outputs["hidden"]
    assert stored["flat"] is outputs["flat"]


class TestFilled:
    """Inputs that a seed describes."""

    def test_fill_equals_the_specification(self) -> None:
        seed = 2**32 - 3  # the sum with the index wraps around
        expected = [(mixed((seed + at) % 2**32) >> 24) / 64 - 2 for at in range(6)]
        assert filled(seed, (2, 3)).ravel().tolist() == expected

    def test_fill_is_exact_in_float16(self) -> None:
        np.testing.assert_array_equal(filled(7, (1000,)), filled(7, (1000,), np.float16).astype(np.float32))

    def test_fill_may_be_empty(self) -> None:
        assert filled(7, (2, 0, 3)).shape == (2, 0, 3)

    @pytest.mark.parametrize("stored", [[0, -1, 2], [0, 2**20, 2**20], [-1, 2], [2**32, 2], []])
    def test_impossible_seed_or_shape_is_refused(self, stored: list[int]) -> None:
        with pytest.raises(ValueError, match="seed"):
            read_fill(np.array(stored, np.int64), np.float32)

    @pytest.mark.parametrize(("stored", "dtype"), [(np.zeros(2), "float32"), (np.array([0, 2]), "int64")])
    def test_fill_of_another_type_is_refused(self, stored: np.ndarray, dtype: str) -> None:
        with pytest.raises(ValueError, match="seed"):
            read_fill(stored, dtype)
