"""The inputs that a base is tried with."""

from __future__ import annotations

import numpy as np
import pytest

from adapter_export.errors import UsageError
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import InputRecord
from adapter_export.numerics.sample_inputs import (
    MOST_AT_EDGES,
    InputCase,
    edge_cases,
    input_cases,
    named_case,
    outside_case,
)

AXES = ("batch", "tokens")
IDS = InputRecord("input_ids", "int64", AXES, "ids", 1000)
TYPES = InputRecord("token_type_ids", "int64", AXES, "ids", 2)
MASK = InputRecord("attention_mask", "int64", AXES, "mask")
TEXT = (IDS, TYPES, MASK)


def shapes(cases: list[InputCase], name: str) -> list[tuple[int, ...]]:
    return [case.arrays[name].shape for case in cases]


def case(cases: list[InputCase], name: str) -> InputCase:
    return next(case for case in cases if case.name == name)


def test_input_cases_cover_batch_sizes_and_lengths() -> None:
    cases = input_cases(TEXT, seed=0)
    assert [case.name for case in cases] == [
        "batch1_tokens1",
        "batch3_tokens1",
        "batch1_tokens7",
        "batch3_tokens7",
        "batch1_tokens65",
        "batch3_tokens65",
        "batch3_tokens7_padded",
    ]
    assert shapes(cases, "input_ids")[:-1] == [(1, 1), (3, 1), (1, 7), (3, 7), (1, 65), (3, 65)]
    assert all(set(case.arrays) == {"input_ids", "token_type_ids", "attention_mask"} for case in cases)


def test_values_are_those_that_an_embedding_takes() -> None:
    long = case(input_cases(TEXT, seed=0), "batch3_tokens65").arrays
    assert all(array.dtype == np.int64 for array in long.values())
    assert long["input_ids"].min() >= 0
    assert 900 < long["input_ids"].max() < 1000
    assert set(np.unique(long["token_type_ids"])) == {0, 1}
    assert long["attention_mask"].all()


def test_padding_stands_at_the_end_with_ids_of_zero() -> None:
    padded = case(input_cases(TEXT, seed=0), "batch3_tokens7_padded").arrays
    np.testing.assert_array_equal(padded["attention_mask"].sum(1), [7, 4, 1])
    assert (np.diff(padded["attention_mask"], axis=1) <= 0).all()
    assert not padded["input_ids"][padded["attention_mask"] == 0].any()
    assert padded["input_ids"][padded["attention_mask"] == 1].any()
    assert all(array.dtype == np.int64 for array in padded.values())


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_a_mask_has_its_own_type(dtype: str) -> None:
    mask = InputRecord("mask", dtype, AXES, "mask")
    padded = case(input_cases((IDS, mask), seed=0), "batch3_tokens7_padded").arrays["mask"]
    assert padded.dtype == dtype
    assert set(np.unique(padded)) == {0, 1}


def test_input_values_spread_evenly_and_ignore_the_mask() -> None:
    values = InputRecord("embeds", "float32", (*AXES, 256), "values")
    cases = input_cases((values, MASK), seed=0)
    long = case(cases, "batch3_tokens65").arrays["embeds"]
    assert long.dtype == np.float32
    assert long.std() == pytest.approx(2 / 3**0.5, abs=0.02)
    assert (long.min(), long.max()) == (-2, 2 - 1 / 64)
    whole, padded = case(cases, "batch3_tokens7"), case(cases, "batch3_tokens7_padded")
    np.testing.assert_array_equal(padded.arrays["embeds"], whole.arrays["embeds"])


def test_integers_of_unknown_meaning_are_zero() -> None:
    positions = InputRecord("positions", "int64", AXES, "values")
    assert not any(case.arrays["positions"].any() for case in input_cases((positions,), seed=0))


def test_no_case_is_longer_than_the_base_takes() -> None:
    assert shapes(input_cases(TEXT, seed=0, max_tokens=5), "input_ids") == [(1, 1), (3, 1), (1, 5), (3, 5), (3, 5)]
    assert shapes(input_cases(TEXT, seed=0, max_tokens=1), "input_ids") == [(1, 1), (3, 1)]


def test_numbers_stay_and_equal_names_have_equal_lengths() -> None:
    image = InputRecord("pixels", "float32", ("batch", 3, 8, 8), "values")
    assert shapes(input_cases((image,), seed=0), "pixels") == [(1, 3, 8, 8), (3, 3, 8, 8)]
    fixed = InputRecord("input_ids", "int64", (2, 16), "ids", 10)
    assert [case.name for case in input_cases((fixed,), seed=0)] == ["fixed"]


def test_a_single_row_is_padded_to_half() -> None:
    mask = InputRecord("mask", "int64", (1, "tokens"), "mask")
    (padded,) = (case for case in input_cases((mask,), seed=0) if case.name.endswith("_padded"))
    np.testing.assert_array_equal(padded.arrays["mask"], [[1, 1, 1, 1, 0, 0, 0]])


@pytest.mark.parametrize(
    ("lengths", "inside", "outside"),
    [
        (Lengths(1, 28), [1, 28], [29]),
        (Lengths(8, 4096, 8), [8, MOST_AT_EDGES], [7, 9, 4097]),
        (Lengths(2, None, 1, (32,)), [2, 31, 33, MOST_AT_EDGES], [1, 32]),
        (Lengths(704, 704), [704], [703, 705]),
    ],
)
def test_input_cases_cover_lengths_at_and_beyond_the_limits(
    lengths: Lengths, inside: list[int], outside: list[int]
) -> None:
    bounds = {"tokens": lengths}
    assert shapes(edge_cases(TEXT, bounds, seed=0), "input_ids") == [(1, size) for size in inside]
    assert lengths.outside() == outside
    cases = [outside_case(TEXT, "tokens", size, bounds, seed=0) for size in outside]
    assert shapes([one for one in cases if one is not None], "input_ids") == [(1, size) for size in outside]
    assert edge_cases(TEXT, {}, seed=0) == []


def test_a_full_cache_is_an_edge() -> None:
    cache = InputRecord("past", "float32", ("batch", "past", 2), "cache", next="present")
    inputs, own = (IDS, cache, InputRecord("mask", "int64", ("batch", "past + tokens"), "mask")), Lengths(1, 20)
    bounds = {"tokens": own, "past + tokens": own}
    found = edge_cases(inputs, bounds, seed=0)
    assert shapes(found, "mask") == [(1, 1), (1, 20), (1, 20)]
    assert shapes(found, "past")[-1] == (1, 19, 2)
    beyond = outside_case(inputs, "past + tokens", 21, bounds, seed=0)
    assert beyond is not None
    assert beyond.arrays["past"].shape == (1, 20, 2)


def test_an_encoder_gets_its_tokens_in_the_first_call_alone():
    """Its keys are in a cache then; behind a past, its axis has the length 0 where the base takes that."""
    source = InputRecord("source", "int64", ("batch", "old"), "ids", 5)
    mask = InputRecord("mask", "int64", ("batch", "past_old + old"), "mask")
    caches = [
        InputRecord(name, "float32", ("batch", f"past_{name}"), "cache", next=f"next_{name}")
        for name in ("old", "tokens")
    ]
    inputs, lengths = (source, mask, IDS, *caches), {"old": Lengths(0)}
    cases = input_cases(inputs, seed=0, lengths=lengths)
    sizes = {
        tuple(case.arrays[name].shape[1] for name in ("source", "mask", IDS.name, "old", "tokens")) for case in cases
    }
    assert {(7, 7, 7, 0, 0), (0, 7, 1, 7, 7)} <= sizes
    assert all((source == 0) == (old > 0) for source, _, _, old, _ in sizes)
    assert named_case(inputs, "batch1_old0_past_old3_tokens1_past_tokens3", lengths, seed=0) is not None
    for nothing in ("batch1_old0_past_old0_tokens1_past_tokens0", "batch1_old0_past_old3_tokens0_past_tokens3"):
        assert named_case(inputs, nothing, lengths, seed=0) is None
    assert all(case.arrays["mask"].size for case in edge_cases(inputs, lengths, seed=0))


def test_given_shapes_take_the_place_of_the_matrix() -> None:
    cases = input_cases(TEXT, seed=0, shapes=[{"batch": 2, "tokens": 4}, {"batch": 2, "tokens": 4}])
    assert [case.name for case in cases] == ["batch2_tokens4", "batch2_tokens4_padded"]


@pytest.mark.parametrize(("lengths", "found"), [({"batch": 2}, "no length"), ({"batch": 2, "tokens": 0}, "0")])
def test_an_axis_without_a_length_is_named(lengths: dict[str, int], found: str) -> None:
    with pytest.raises(UsageError, match=f"axis `tokens`: a named axis needs a length; found {found}"):
        input_cases(TEXT, seed=0, shapes=[lengths])


CACHED = (
    InputRecord("ids", "int64", ("batch", "new"), "ids", 1000),
    InputRecord("mask", "int64", ("batch", "past + new"), "mask"),
    InputRecord("key", "float32", ("batch", 2, "past", 4), "cache", next="present"),
)


def test_a_decoder_with_a_cache_gets_texts_and_then_single_tokens() -> None:
    cases = input_cases(CACHED, seed=0, max_tokens=9)
    lengths = [(one[1], two[2]) for one, two in zip(shapes(cases, "ids"), shapes(cases, "key"), strict=True)]
    assert lengths[::2] == lengths[1::2] == [(1, 0), (7, 0), (9, 0), (1, 1), (1, 7)]
    for each in cases:
        rows, new = each.arrays["ids"].shape
        assert each.arrays["mask"].shape == (rows, each.arrays["key"].shape[2] + new)
        assert each.arrays["mask"].all()
    assert case(cases, "batch3_new1_past7").arrays["key"].std() == pytest.approx(1, abs=0.2)


def test_only_a_cache_may_be_empty() -> None:
    (empty,) = input_cases(CACHED, seed=0, shapes=[{"batch": 1, "new": 2, "past": 0}])
    assert empty.arrays["key"].shape == (1, 2, 0, 4)
    with pytest.raises(UsageError, match="axis `new`: a named axis needs a length; found 0"):
        input_cases(CACHED, seed=0, shapes=[{"batch": 1, "new": 0, "past": 2}])


def test_equal_seeds_give_equal_inputs() -> None:
    first, again, other = (input_cases(TEXT, seed=seed) for seed in (1, 1, 2))
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left.arrays["input_ids"], right.arrays["input_ids"])
    assert not np.array_equal(first[-2].arrays["input_ids"], other[-2].arrays["input_ids"])
