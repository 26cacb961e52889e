from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adapter_export.errors import RequestError
from adapter_export.format.manifest import InputRecord
from adapter_export.runtime.check_inputs import check_inputs

RECORDS = (
    InputRecord("ids", "int64", ("batch", "tokens"), "ids", 10),
    InputRecord("mask", "bool", ("batch", "tokens"), "mask"),
    InputRecord("pixels", "float32", ("batch", 3), "values"),
)

GOOD: dict[str, Any] = {
    "ids": np.array([[0, 9], [1, 2]]),
    "mask": np.ones((2, 2), bool),
    "pixels": np.zeros((2, 3), np.float32),
}


def test_valid_inputs_are_returned_contiguous_in_graph_order() -> None:
    turned = {name: np.asfortranarray(GOOD[name]) for name in reversed(GOOD)}
    found = check_inputs(turned, RECORDS, {})
    assert list(found) == ["ids", "mask", "pixels"]
    for name, array in found.items():
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, GOOD[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": None}, "no `ids`"),
        ({"more": np.zeros(1)}, "unknown `more`"),
        ({"ids": GOOD["ids"].astype(np.int32)}, r'`ids`.*int32; expected int64.*astype\("int64"\)'),
        ({"pixels": GOOD["pixels"].astype(np.float64)}, "`pixels`.*float64; expected float32"),
        ({"mask": np.ones((2, 2))}, "`mask`.*float64; expected bool"),
        ({"ids": np.array([0, 1])}, r"`ids`.*\[2\]; expected \[batch, tokens\]"),
        ({"ids": np.zeros((), np.int64)}, r"`ids`.*wrong shape; found \[\]"),
        ({"mask": np.ones((2, 3), bool)}, r"`mask`.*\[2, 3\]; expected \[batch = 2, tokens = 2\]"),
        ({"pixels": np.zeros((2, 4), np.float32)}, r"`pixels`.*expected \[batch = 2, 3\]"),
        ({"pixels": np.zeros((1, 3), np.float32)}, r"`pixels`.*expected \[batch = 2, 3\]"),
        ({"ids": np.zeros((0, 2), np.int64)}, "at least 1 along each axis"),
        ({"ids": np.array([[0, 10], [1, 2]])}, "found 10; expected 0 to 9"),
        ({"ids": np.array([[0, -1], [1, 2]])}, "found -1; expected 0 to 9"),
        ({"mask": np.array([[True, False], [False, False]])}, "`mask`.*at least 1 token in each row"),
    ],
)
def test_each_fault_is_named(change: dict[str, Any], message: str) -> None:
    inputs = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(RequestError, match=message):
        check_inputs(inputs, RECORDS, {})


CACHED = (
    InputRecord("ids", "int64", ("batch", "new"), "ids", 10),
    InputRecord("mask", "int64", ("batch", "past + new"), "mask"),
    InputRecord("key", "float32", ("batch", 2, "past", 4), "cache", next="present"),
)


def _cached(past: int, new: int, total: int, rows: int = 1) -> dict[str, Any]:
    return {
        "ids": np.zeros((1, new), np.int64),
        "mask": np.ones((1, total), np.int64),
        "key": np.zeros((rows, 2, past, 4), np.float32),
    }


@pytest.mark.parametrize(("past", "new"), [(0, 3), (5, 1)])
def test_empty_caches_are_accepted_and_the_mask_covers_both(past: int, new: int) -> None:
    found = check_inputs(_cached(past, new, past + new), CACHED, {})
    assert found["key"].shape == (1, 2, past, 4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (_cached(5, 1, 5), r"`mask`.*found \[1, 5\]; expected \[batch = 1, past \+ new = 6\]"),
        (_cached(0, 3, 4), r"`mask`.*expected \[batch = 1, past \+ new = 3\]"),
        (_cached(5, 1, 6, rows=2), r"`key`.*expected \[batch = 1, 2, past, 4\]"),
        (_cached(0, 0, 0), r"`ids`.*at least 1 along each axis"),
    ],
)
def test_lengths_that_do_not_add_up_are_named(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_inputs(inputs, CACHED, {})
