"""Lengths of axes, and the caches that are recognised by them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapter_export.format.axes import length, names, with_caches
from adapter_export.format.manifest import InputRecord, OutputRecord

IDS = InputRecord("ids", "int64", ("batch", "new"), "ids", 10)
MASK = InputRecord("mask", "int64", ("batch", "total"), "mask")
LOGITS = OutputRecord("logits", "float32", ("batch", "new", 10))
SUM = "past + new"


def past(name: str, *, dtype: str = "float32", axis: str | int = "past") -> InputRecord:
    return InputRecord(name, dtype, ("batch", 2, axis, 4), "values")


def present(name: str, *, dtype: str = "float32", axis: str | int = "total") -> OutputRecord:
    return OutputRecord(name, dtype, ("batch", 2, axis, 4))


@pytest.mark.parametrize(
    ("axis", "parts", "found"),
    [(3, (), 3), ("past", ("past",), 5), (SUM, ("past", "new"), 7), ("2*new", ("2*new",), 9)],
)
def test_axis_lengths_are_numbers_names_or_sums(axis, parts, found):
    assert names(axis) == parts
    assert length(axis, {"past": 5, "new": 2, "2*new": 9}) == found


def test_caches_are_recognised_by_the_grown_mask():
    inputs, outputs = with_caches(
        [IDS, MASK, past("key"), past("value")], [LOGITS, present("next_key"), present("next_value")]
    )
    assert inputs[:2] == (IDS, replace(MASK, axes=("batch", SUM)))
    assert [(record.role, record.next) for record in inputs[2:]] == [("cache", "next_key"), ("cache", "next_value")]
    assert [output.axes for output in outputs] == [LOGITS.axes, *[("batch", 2, SUM, 4)] * 2]


@pytest.mark.parametrize("total", [SUM, "new + past"])
def test_caches_are_recognised_by_a_summed_length(total):
    inputs, outputs = with_caches([IDS, past("key")], [LOGITS, present("next_key", axis=total)])
    assert (inputs[1].role, inputs[1].next) == ("cache", "next_key")
    assert outputs[1].axes == ("batch", 2, total, 4)


def test_encoder_and_decoder_caches_are_recognised_by_their_sums():
    """Inputs of an encoder–decoder, whose halves have tokens of their own."""
    source, written = replace(IDS, name="source", axes=("batch", "old")), IDS
    mask = replace(MASK, axes=("batch", "past_old + old"))
    keys = [past("encoder", axis="past_old"), past("decoder")]
    inputs, _ = with_caches(
        [source, mask, written, *keys],
        [LOGITS, present("next_encoder", axis="past_old + old"), present("next_decoder", axis=SUM)],
    )
    assert inputs[:3] == (source, mask, written)
    assert [(record.role, record.next) for record in inputs[3:]] == [
        ("cache", "next_encoder"),
        ("cache", "next_decoder"),
    ]


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([IDS, MASK, past("key", dtype="float16")], [present("next_key")]),
        ([IDS, MASK, past("key")], [present("next_key", axis="other")]),
        ([IDS, MASK, past("key", axis=7)], [present("next_key")]),
        ([IDS, MASK, past("key", axis="new")], [present("next_key")]),
        ([IDS, MASK, past("key"), past("value")], [present("next_key")]),
        ([MASK, past("key")], [present("next_key")]),
        ([IDS, replace(MASK, axes=("batch", "new")), past("key")], [present("next_key", axis="new")]),
        ([IDS, replace(IDS, name="other", axes=("batch", "old")), MASK, past("key")], [present("next_key")]),
    ],
    ids=[
        *("type", "no mask of that length", "fixed", "new tokens", "one output for two", "no tokens", "no longer mask"),
        "two texts and one mask",
    ],
)
def test_uncertain_caches_are_not_recognised(inputs, outputs):
    assert with_caches(inputs, outputs) == (tuple(inputs), tuple(outputs))
