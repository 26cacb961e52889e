"""Weights matched row by row: joined, split, rounded; what differs, is left over or stands elsewhere is refused."""

from __future__ import annotations

import numpy as np
import pytest

from adapter_export.errors import BaseModelError
from adapter_export.numerics.weight_match import StoredRows, WeightUse, match_weights

WIDTH = 8
RNG = np.random.default_rng(0)
QUERY, KEY, VALUE, UP = (RNG.normal(0, 0.2, (rows, WIDTH)).astype(np.float32) for rows in (6, 2, 2, 5))
NORM = np.linspace(0.5, 1.5, 4, dtype=np.float32)


def use(name: str, values: np.ndarray, *, half: float = 0.0, outward: int = 0, neutral: bool = False) -> WeightUse:
    """A use of a weight [out, in] or [d], in a type with one rounding step, perhaps saturated everywhere."""
    rows = values.reshape(-1, 1) if values.ndim == 1 else values

    def read(start: int, end: int) -> StoredRows:
        part = rows[start:end]
        return StoredRows(part, np.full((1, 1), half, np.float32), np.full(part.shape, outward, np.int8))

    return WeightUse(name, len(rows), None if values.ndim == 1 else rows.shape[1], read, is_neutral=neutral)


TRAINED = [use("q", QUERY), use("k", KEY), use("v", VALUE), use("norm", NORM), use("up", UP)]


def joined() -> np.ndarray:
    return np.concatenate([QUERY, KEY, VALUE])


def test_joined_and_split_layers_are_found_row_by_row():
    stored = [use("qkv", joined()), use("norm", NORM), use("up.0", UP[:3]), use("up.1", UP[3:])]
    found = match_weights(stored, TRAINED, "model")
    spans = [(each.weight, each.start, each.rows, each.trained, each.trained_start) for each in found]
    assert spans == [
        ("qkv", 0, 6, "q", 0),
        ("qkv", 6, 2, "k", 0),
        ("qkv", 8, 2, "v", 0),
        ("up.0", 0, 3, "up", 0),
        ("up.1", 0, 2, "up", 3),
        ("norm", 0, 4, "norm", 0),
    ]
    assert {each.deviation for each in found} == {0.0}


def test_a_number_may_be_half_a_step_away_and_no_more():
    step = 0.25  # a power of two, so that the sums are exact
    for shift, fits in ((0.125, True), (0.1251, False)):
        stored = [use("w", np.round(UP) + np.float32(shift), half=step / 2)]
        trained = [use("up", np.round(UP))]
        if fits:
            (found,) = match_weights(stored, trained, "model")
            assert (found.steps, found.deviation, found.saturated) == (0.5, 0.125, 0)
        else:
            with pytest.raises(BaseModelError, match=r"40 of 40 differ, by up to 0\.125, 0\.5 rounding steps"):
                match_weights(stored, trained, "model")


@pytest.mark.parametrize(("beyond", "fits"), [(2.0, True), (2.01, False), (-0.51, False)])
def test_clipped_numbers_match_weights_beyond_their_block(beyond, fits):
    trained = [use("w", np.full((1, WIDTH), beyond, np.float32))]
    stored = [use("w", np.zeros((1, WIDTH), np.float32), half=0.5, outward=1)]
    if fits:
        (found,) = match_weights(stored, trained, "model")
        assert (found.saturated, found.saturated_steps, found.steps) == (WIDTH, 2.0, 0.0)
    else:
        with pytest.raises(BaseModelError, match=f"{abs(beyond):.3g} rounding steps"):
            match_weights(stored, trained, "model")


def changed(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[3, 5] += 0.01
    return array


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([use("qkv", changed(joined())), *TRAINED[3:]], r"`qkv` is not `q`: 1 of 48 differ, by up to 0\.01"),
        ([use("q", QUERY), use("v", VALUE), use("k", KEY), *TRAINED[3:]], r"`v` is not `k`: 16 of 16 differ.*`k` is"),
        ([use("q", QUERY), use("k", KEY), use("k", KEY), *TRAINED[3:]], r"`k` is not `v`: 16 of 16 differ"),
        ([*TRAINED, use("more", UP)], r"the graph's `more` without a counterpart, with rows of 8"),
        (TRAINED[:-1], r"the model's `up` without a counterpart, with rows of 8"),
        ([*TRAINED, use("bias", NORM)], r"the graph's `bias` without a counterpart, a vector"),
        ([*TRAINED, use("wide", np.ones((2, 9), np.float32))], r"the graph's `wide` without .*, with rows of 9"),
        ([*TRAINED[:-1], use("up", np.full_like(UP, np.nan))], r"`up` is not `up`: 40 of 40 differ, by up to inf"),
    ],
    ids=["one number", "permuted", "one twice", "more", "fewer", "a vector", "another width", "NaN"],
)
def test_another_model_is_refused_by_name(stored, message):
    with pytest.raises(
        BaseModelError, match=rf"model: does not contain the weights of the trained model; found .*{message}"
    ):
        match_weights(stored, TRAINED, "model")


def test_factors_of_one_may_be_absent_from_the_trained_model():
    ones = use("ones", np.ones(4, np.float32), neutral=True)
    assert len(match_weights([*TRAINED[:3], ones, *TRAINED[3:], ones], TRAINED, "model")) == len(TRAINED)
    with pytest.raises(BaseModelError, match="the model's `norm` without a counterpart, a vector"):
        match_weights([*TRAINED[:3], ones, TRAINED[4]], TRAINED, "model")
