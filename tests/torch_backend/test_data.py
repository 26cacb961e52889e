"""Splits and batches: every row once, in the right place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_encoder import MAX_TOKENS, tokenizer_json

from adapter_export.errors import DataError, RequestError
from adapter_export.graph.tasks.labels import class_indices, label_names
from adapter_export.text import Tokenizer
from adapter_export.training.loop.data import (
    TextExamples,
    evaluation_batches,
    split,
    training_batches,
)

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=400).map(np.array)
NAMES = ("input_ids", "attention_mask")


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(tokenizer_json(), MAX_TOKENS)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3))
def test_batches_hold_every_row_once(lengths: np.ndarray, size: int, seed: int) -> None:
    for batches in (training_batches(lengths, size, (seed, 0)), evaluation_batches(lengths, size)):
        assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
        assert all(1 <= len(batch) <= size for batch in batches)


def test_batches_follow_from_the_seed_and_differ_between_epochs() -> None:
    lengths = np.arange(1, 200) % 17 + 1
    one, same, other = (training_batches(lengths, 8, seed) for seed in ((3, 0), (3, 0), (3, 1)))
    assert all(map(np.array_equal, one, same))
    assert len(one) == len(other)
    assert {tuple(sorted(batch)) for batch in one} != {tuple(sorted(batch)) for batch in other}


def test_rows_of_like_length_share_batches() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 3000)
    padded = sum(len(batch) * lengths[batch].max() for batch in training_batches(lengths, 32, (0, 0)))
    assert padded < 1.05 * lengths.sum()
    assert 32 * lengths.max() * (3000 // 32) > 1.5 * lengths.sum(), "without sorting, padding would be large"


@given(
    st.lists(st.integers(2, 30), min_size=2, max_size=6),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_a_split_keeps_every_class_on_both_sides(counts: list[int], fraction: float, seed: int) -> None:
    classes = np.repeat(np.arange(len(counts)), counts)
    first, second = split(classes, fraction, seed)
    assert sorted([*first, *second]) == list(range(len(classes)))
    for number, count in enumerate(counts):
        held_out = int((classes[second] == number).sum())
        assert 1 <= held_out <= count - 1
        assert abs(held_out - fraction * count) <= 1
    assert all(map(np.array_equal, split(classes, fraction, seed), (first, second)))


def test_classes_are_in_order() -> None:
    assert label_names(["b", "a", "b", "a"], "rows") == ("a", "b")
    assert label_names(["10", "9", "-1"] * 2, "rows") == ("-1", "9", "10")
    assert label_names(["10", "9", "x"] * 2, "rows") == ("10", "9", "x")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", "a"], "rows: holds fewer than two classes; found `a`"),
        (["a", "a", "b", "c"], "a class has one row only.*found `b`, `c`; expected at least two rows"),
    ],
)
def test_invalid_classes_are_refused(labels: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        label_names(labels, "rows")


def test_labels_become_numbers() -> None:
    assert class_indices(["b", "a", "b"], ("a", "b"), "rows").tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="rows: contains unknown labels; found `c`"):
        class_indices(["c"], ("a", "b"), "rows")


def test_texts_are_padded_to_the_longest_of_their_batch(tokenizer: Tokenizer) -> None:
    texts = ["good", "the film was good", " ".join(["the"] * 100)]
    found = TextExamples.of(texts, np.array([0, 1, 0]), tokenizer, NAMES)
    assert found.lengths.tolist() == [3, 6, MAX_TOKENS]
    assert found.cut == (2,)
    (call,) = found.calls(np.array([1, 0]), pads=True)
    inputs = call.inputs
    assert inputs["input_ids"].shape == (2, 6)
    assert inputs["attention_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    some = found.only(np.array([2, 1]))
    assert (some.texts, some.lengths.tolist()) == ([texts[2], texts[1]], [MAX_TOKENS, 6])
    assert some.matched(torch.zeros(2, 2), np.arange(2))[1].tolist() == [0, 1]


def test_inputs_that_text_cannot_fill_are_named_at_once(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="`pixels`"):
        TextExamples.of(["good"], np.array([0]), tokenizer, ("pixels",))


def test_a_fingerprint_changes_with_any_row(tokenizer: Tokenizer) -> None:
    def of(texts: list[str], classes: list[int]) -> str:
        return TextExamples.of(texts, np.array(classes), tokenizer, NAMES).fingerprint

    known = {of(["good", "bad"], [0, 1]), of(["good", "bad"], [0, 0]), of(["good bad", "bad"], [0, 1])}
    assert len(known | {of(["bad", "good"], [0, 1])}) == 4
    assert of(["good", "bad"], [0, 1]) in known
