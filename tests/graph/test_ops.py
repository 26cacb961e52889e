"""The op table compared with publications."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapter_export.graph.ops import ACTIVATIONS, OPS, Arity
from adapter_export.interval import Interval

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "adapter-graph.schema.json").read_text())


def test_the_schema_names_the_same_ops() -> None:
    assert SCHEMA["$defs"]["node"]["properties"]["op"]["enum"] == list(OPS)


def test_the_schema_gives_attributes_the_same_range() -> None:
    published = SCHEMA["$defs"]["attributes"]["properties"]
    intervals = {name: interval for op in OPS.values() for name, interval in op.attributes.items()}
    assert set(published) == set(intervals)
    assert all(intervals[name] == interval for op in OPS.values() for name, interval in op.attributes.items())
    for name, interval in intervals.items():
        range_ = published[name] if "minimum" in published[name] else SCHEMA["$defs"]["number"]
        high = "exclusiveMaximum" if interval.half_open else "maximum"
        assert (range_["minimum"], range_[high]) == (interval.low, interval.high)


def test_activations_read_one_value_and_own_nothing() -> None:
    assert all(str(OPS[name].arity) == "1" and not OPS[name].parameters for name in ACTIVATIONS)


@pytest.mark.parametrize(
    ("number", "closed", "half_open"),
    [
        (0, True, True),
        (0.5, True, True),
        (1, True, False),
        (-0.1, False, False),
        (1.1, False, False),
        (float("nan"), False, False),
        (float("inf"), False, False),
    ],
)
def test_intervals_contain_their_bounds(number: float, closed: bool, half_open: bool) -> None:
    assert (number in Interval(0, 1)) is closed
    assert (number in Interval(0, 1, half_open=True)) is half_open


@pytest.mark.parametrize(
    ("arity", "text", "reads"),
    [
        (Arity(), "1", {1}),
        (Arity(2), "2", {2}),
        (Arity(1, 1), "1, 2, …", {1, 2, 3, 4, 5}),
        (Arity(2, 2), "2, 4, …", {2, 4}),
    ],
)
def test_arities_contain_their_counts(arity: Arity, text: str, reads: set[int]) -> None:
    assert {count for count in range(6) if count in arity} == reads
    assert str(arity) == text
