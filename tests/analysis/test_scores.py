"""Scores with intervals, calibration, confusion, slices and gates, against values worked out by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from adapter_export.errors import UsageError
from adapter_export.graph.tasks.metrics import (
    CHOICES,
    CLASSES,
    NUMBERS,
    Judged,
    judge_classes,
    judge_numbers,
    judge_ranking,
)
from adapter_export.plugins.lab.evaluation import (
    apply_gates,
    calibrate,
    check_gates,
    class_scores,
    confusion,
    slice_by,
)
from adapter_export.plugins.lab.scores import NO_INTERVALS, Resampling, Score, score

LABELS = ("a", "b")
SHARES = np.array([[0.95, 0.05], [0.9, 0.1], [0.3, 0.7], [0.25, 0.75], [0.55, 0.45]])
RIGHT = np.array([0, 1, 1, 0, 0])
JUDGED = judge_classes(SHARES, RIGHT, LABELS)
"""Answers a a b b a; right are the first, the third and the last."""


def test_an_interval_holds_the_middle_of_the_draws() -> None:
    found = score(JUDGED, Resampling(400, 3))["accuracy"]
    rng = np.random.default_rng(3)
    hits = np.array([1.0, 0, 1, 0, 1])
    drawn = [hits[rng.choice(np.arange(5), 5)].mean() for _ in range(400)]
    assert found == Score(0.6, *np.percentile(drawn, [2.5, 97.5]).tolist())
    assert score(JUDGED, Resampling(400, 3))["accuracy"] == found
    assert score(JUDGED, Resampling(400, 4)) != score(JUDGED, Resampling(400, 3))


def _mean(hits: np.ndarray, rows: np.ndarray) -> tuple[float]:
    return (float(hits[rows].mean()),)


def test_intervals_cover_the_true_accuracy_in_95_percent() -> None:
    """About 95 % of 200 samples of 60 rows with an accuracy of 0.8 have an interval that contains 0.8."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        hits = rng.random(60) < 0.8
        judged = Judged(CHOICES, partial(_mean, hits), np.arange(60), tuple(hits), tuple(hits))
        found = score(judged, Resampling(150))["accuracy"]
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.8 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_scores_of_single_rows_have_no_interval() -> None:
    alone = judge_classes(SHARES[:1], RIGHT[:1], LABELS)
    assert score(alone, Resampling(10))["accuracy"] == Score(1.0)
    assert score(JUDGED, NO_INTERVALS)["accuracy"] == Score(0.6)
    constant = judge_numbers(np.ones((3, 1)), np.arange(3.0)[:, None])
    assert score(constant, Resampling(10))["pearson"] == Score(None)
    assert score(constant, Resampling(10))["mean_absolute_error"].low is not None


def test_ranking_intervals_resample_groups() -> None:
    judged = judge_ranking(np.array([2.0, 1, 2, 1]), np.array([1.0, 0, 0, 1]), ("p", "p", "q", "q"))
    found = score(judged, Resampling(200))["mrr"]
    assert (found.value, found.low, found.high) == (0.75, 0.5, 1.0)


def test_calibration_bins_match_values_worked_out_by_hand() -> None:
    """Five bins with one answer each: 0.55 right, 0.7 right, 0.75 wrong, 0.9 wrong, 0.95 right."""
    found = calibrate(JUDGED)
    assert found is not None
    assert [(round(one.low, 1), one.count, one.right) for one in found.bins] == [
        *((0.5, 1, 1.0), (0.6, 1, 1.0), (0.7, 1, 0.0), (0.8, 1, 0.0), (0.9, 1, 1.0))
    ]
    assert found.error == pytest.approx((0.45 + 0.3 + 0.75 + 0.9 + 0.05) / 5)


def test_confusion_and_class_scores_match_values_by_hand() -> None:
    """Class a: answered thrice, twice right, and right thrice; class b: answered twice, once right, right twice."""
    assert JUDGED.decisions is not None
    assert confusion(JUDGED.decisions) == ((2, 1), (1, 1))
    first, second = class_scores(JUDGED.decisions)
    assert (first.label, first.precision, first.recall, first.support) == ("a", 2 / 3, 2 / 3, 3)
    assert (second.precision, second.recall, second.f1, second.support) == (0.5, 0.5, 0.5, 2)


def test_slices_are_scored_separately() -> None:
    first, second = slice_by(["en", "de", "en", "de", "en"], JUDGED, Resampling(50, 0))
    assert (first.value, first.rows, first.scores["accuracy"].value) == ("en", 3, 1.0)
    assert (second.value, second.rows, second.scores["accuracy"].value) == ("de", 2, 0.0)
    assert first.scores["accuracy"].low == 1.0
    assert first.scores["macro_f1"] == Score(1.0), "the first metric alone has an interval"


def test_gates_are_bounds_on_the_side_that_is_worse() -> None:
    scores = score(judge_numbers(np.array([[1.0], [2.0], [6.0]]), np.array([[1.0], [2.0], [3.0]])), NO_INTERVALS)
    gates = {"pearson": 0.9, "mean_absolute_error": 0.5, "spearman": 0.99}
    assert [gate.passed for gate in apply_gates(gates, NUMBERS, scores)] == [True, False, True]
    undefined = {metric.name: Score(None) for metric in NUMBERS}
    assert not any(gate.passed for gate in apply_gates(gates, NUMBERS, undefined))


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        ({"acuracy": 0.9}, "is not a metric of this task"),
        ({"accuracy": 92.0}, "the metric cannot have this value"),
        ({"accuracy": math.nan}, "the metric cannot have this value"),
    ],
)
def test_gates_that_no_score_could_pass_or_miss_are_refused(gates: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_gates(gates, CLASSES)
    check_gates({"accuracy": 1.0, "macro_f1": 0.0}, CLASSES)
