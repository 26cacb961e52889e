"""Metrics of answers, against values worked out by hand, and against other ways to compute them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from sklearn.metrics import accuracy_score
from sklearn.metrics import f1_score as sk_f1_score

from adapter_export.errors import DataError
from adapter_export.graph.tasks.metrics import (
    Decisions,
    Judged,
    has_entities,
    judge_choices,
    judge_classes,
    judge_label_sets,
    judge_neighbours,
    judge_numbers,
    judge_ranking,
    judge_similarities,
    judge_spans,
    judge_tags,
    plain,
    token_f1,
)


def values(judged: Judged, units: list[int] | None = None) -> dict[str, float]:
    measured = judged.measure(np.arange(judged.units) if units is None else np.array(units))
    return {metric.name: float(value) for metric, value in zip(judged.metrics, measured, strict=True)}


def test_class_metrics_match_values_by_hand() -> None:
    """Right: a a a b; answered: a a b b. F1 of a: 2·2/(3+2) = 0.8, of b: 2·1/(1+2) = 2/3."""
    shares = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    judged = judge_classes(shares, np.array([0, 0, 0, 1]), ("a", "b"))
    assert values(judged) == pytest.approx({"accuracy": 0.75, "macro_f1": (0.8 + 2 / 3) / 2})
    assert (judged.answers, judged.truths) == (("a", "a", "b", "b"), ("a", "a", "a", "b"))
    assert judged.certainty is not None
    assert judged.certainty[0].tolist() == [0.9, 0.6, 0.7, 0.8]
    assert judged.certainty[1].tolist() == [True, True, False, True]
    assert values(judged, [2]) == {"accuracy": 0.0, "macro_f1": 0.0}


def test_class_metrics_match_scikit_learn() -> None:
    """Also of classes that are never right, never answered, or neither."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        right, answered = rng.integers(0, 6, (2, 12))
        found = values(judge_classes(np.eye(8)[answered], right, tuple("abcdefgh")))
        macro = sk_f1_score(right, answered, average="macro", zero_division=0.0)
        assert found == pytest.approx({"accuracy": accuracy_score(right, answered), "macro_f1": macro})


def decisions(right: list[int], answered: list[int]) -> Decisions:
    return Decisions(("a", "b", "c"), np.array(right), np.array(answered))


def test_the_majority_is_the_score_of_always_answering_the_most_frequent_label() -> None:
    """Compute by hand: 16 of 25 rows are b, so accuracy is 16/25; F1 of b 2·16/(25+16), of a and c 0."""
    majority = decisions([1] * 16 + [0] * 5 + [2] * 4, [0] * 25).majority
    assert majority is not None
    assert majority.label == "b"
    assert majority.scores == pytest.approx({"accuracy": 0.64, "macro_f1": 32 / 41 / 3})
    sets = np.eye(3, dtype=bool)
    assert Decisions(("a", "b", "c"), sets, sets).majority is None


@pytest.mark.parametrize(
    ("right", "answered", "collapsed"),
    [
        ([1] * 16 + [0] * 9, [1] * 25, True),
        ([1] * 64 + [0] * 36, [1] * 99 + [0], True),
        ([1] * 64 + [0] * 36, [1] * 97 + [0] * 3, False),
        ([1] * 64 + [0] * 36, [1] * 64 + [0] * 36, False),
        ([1] * 99 + [0], [1] * 99 + [0], False),
        ([1] * 99 + [0], [1] * 100, True),
        ([1] * 100, [1] * 100, False),
        ([1] * 6 + [0] * 4, [1] * 10, False),  # too few to tell
    ],
)
def test_a_collapse_is_one_answer_to_nearly_all_rows(right: list[int], answered: list[int], collapsed: bool) -> None:
    found = decisions(right, answered).collapse
    assert (found is not None) is collapsed
    if found is not None:
        assert found.startswith(f"`b` is {answered.count(1) / len(answered):.1%} of the answers")


def test_label_set_metrics_match_values_by_hand() -> None:
    """Two labels. Hits 2, answered 3, right 3: micro-F1 4/6. F1 of x: 1, of y: 0. One of three rows is all right.

    Average precision: of x, both right rows come first: 1. Of y, the right row comes second of three: 1/2.
    """
    shares = np.array([[0.9, 0.1], [0.8, 0.6], [0.2, 0.4]])
    right = np.array([[True, False], [True, False], [False, True]])
    judged = judge_label_sets(shares, right, ("x", "y"), (0.5, 0.5))
    expected = {"micro_f1": 4 / 6, "macro_f1": 0.5, "subset_accuracy": 1 / 3, "average_precision": 0.75}
    assert values(judged) == pytest.approx(expected)
    assert judged.answers == (["x"], ["x", "y"], [])
    lower = judge_label_sets(shares, right, ("x", "y"), (0.5, 0.3))
    assert lower.answers == (["x"], ["x", "y"], ["y"])
    assert values(judged, [0])["average_precision"] == 1.0, "over the labels that a row has"


def test_choice_metrics_match_values_by_hand() -> None:
    judged = judge_choices([np.array([1.0, 2.0]), np.array([0.0, 0.0, math.log(2)])], np.array([1, 0]))
    assert values(judged) == {"accuracy": 0.5}
    assert judged.answers == (1, 2)
    assert judged.certainty is not None
    assert judged.certainty[0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 0.5])


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def test_entities_count_as_a_whole() -> None:
    """Right: PER 0-1, LOC 3; PER 0. Answered: only PER 0, LOC 3; PER 0. Hits 2 of 3 and 3; 5 of 6 words."""
    right, answered = [np.array([1, 2, 0, 3]), np.array([1, 0])], [np.array([1, 0, 0, 3]), np.array([1, 0])]
    judged = judge_tags(answered, right, TAGS, [np.full(4, 0.9), np.full(2, 0.8)])
    found = values(judged)
    assert {name: found[name] for name in ("f1", "precision", "recall", "accuracy")} == pytest.approx(
        {"f1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3, "accuracy": 5 / 6}
    )
    assert values(judged, [1])["f1"] == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_entity_metrics_match_seqeval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, 30)
    right = [rng.integers(0, 5, length) for length in lengths]
    answered = [np.where(rng.random(len(row)) < 0.6, row, rng.integers(0, 5, len(row))) for row in right]
    judged = judge_tags(answered, right, TAGS, [np.ones(length) for length in lengths])
    drawn = rng.integers(0, 30, 30)
    found = values(judged, drawn.tolist())
    sides = [[list(side[at]) for at in drawn] for side in (judged.truths, judged.answers)]
    for name, measure in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert found[name] == pytest.approx(measure(*sides, zero_division=0))
    words = [[word for row in side for word in row] for side in sides]
    assert found["accuracy"] == pytest.approx(accuracy_score(*words))


def test_labels_that_mark_no_entities_are_judged_word_by_word() -> None:
    assert has_entities(TAGS)
    assert not has_entities(("NOUN", "VERB", "O"))
    judged = judge_tags([np.array([0, 1, 1])], [np.array([0, 1, 0])], ("NOUN", "VERB"), [np.ones(3)])
    assert values(judged) == pytest.approx({"macro_f1": 2 / 3, "accuracy": 2 / 3})


def test_spans_are_compared_as_by_squad() -> None:
    """`the Eiffel Tower` and `Eiffel Tower in Paris` share 2 of 2 and 4 words: F1 4/6."""
    assert plain(" The  Eiffel-Tower, a tower. ") == "eiffeltower tower"
    assert token_f1("the Eiffel Tower", "Eiffel Tower in Paris") == pytest.approx(4 / 6)
    assert (token_f1("", ""), token_f1("", "x"), token_f1("x", "")) == (1.0, 0.0, 0.0)
    judged = judge_spans(["The moon!", "in Paris", ""], [["moon"], ["Rome", "Paris"], ["x"]])
    assert values(judged) == pytest.approx({"exact_match": 1 / 3, "f1": (1 + 2 / 3 + 0) / 3})


def test_number_metrics_match_values_by_hand() -> None:
    """Right 1 2 3, answered 1 2 6. Pearson: 5/√(2·14); Spearman 1; R²: 1 − 9/2; mean absolute error 1."""
    judged = judge_numbers(np.array([[1.0], [2.0], [6.0]]), np.array([[1.0], [2.0], [3.0]]))
    expected = {"pearson": 5 / math.sqrt(28), "spearman": 1.0, "r2": -3.5, "mean_absolute_error": 1.0}
    assert values(judged) == pytest.approx(expected)


def test_constant_answers_have_no_correlation() -> None:
    constant = judge_numbers(np.array([[1.0], [1.0]]), np.array([[1.0], [2.0]]))
    assert math.isnan(values(constant)["pearson"])
    assert math.isnan(values(constant)["spearman"])
    single = values(judge_numbers(np.array([[1.0]]), np.array([[2.0]])))
    assert math.isnan(single["r2"])
    assert single["mean_absolute_error"] == 1.0


def test_similarity_metrics_match_values_by_hand() -> None:
    """Ranks 1 2 3 against 1 3 2: Spearman 1 − 6·2/(3·8) = 0.5."""
    judged = judge_similarities(np.array([0.1, 0.2, 0.9]), np.array([0.0, 5.0, 4.0]))
    assert values(judged)["spearman"] == pytest.approx(0.5)


def test_neighbour_metrics_match_values_by_hand() -> None:
    """Angles of 0°, 10°, 25° and 40°: nearest are 1, 0, 1 and 2; their lengths do not count."""
    angles = np.radians([0, 10, 25, 40])
    vectors = np.stack([np.cos(angles), np.sin(angles)], -1) * np.array([[1.0], [9.0], [2.0], [5.0]])
    judged = judge_neighbours(vectors, ("a", "a", "b", "b"))
    assert judged.answers == ("a", "a", "a", "b")
    assert values(judged) == {"neighbour_accuracy": 0.75}
    with pytest.raises(DataError, match="a single row has no neighbour"):
        judge_neighbours(vectors[:1], ("a",))


def test_ranking_metrics_match_values_by_hand() -> None:
    """Group p: the relevant row comes second: 1/2, NDCG 1/log2(3). Group q: first: 1 and 1. Group r is left out."""
    scores, relevances = np.array([0.9, 0.5, 0.1, 0.8, 0.2, 0.7]), np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    judged = judge_ranking(scores, relevances, ("p", "p", "p", "q", "q", "r"))
    assert values(judged) == pytest.approx({"mrr": 0.75, "ndcg_at_10": (1 / math.log2(3) + 1) / 2})
    assert judged.unit.tolist() == [0, 0, 0, 1, 1, -1]
    assert judged.notes == ("groups left out, for they have one row only, or none that is relevant: 1 of 3",)


def test_equal_scores_do_not_help_a_ranking() -> None:
    judged = judge_ranking(np.zeros(4), np.array([1.0, 0.0, 0.0, 0.0]), ("p",) * 4)
    assert values(judged)["mrr"] == 0.25


def test_unrankable_groups_are_refused() -> None:
    with pytest.raises(DataError, match="nothing can be ranked"):
        judge_ranking(np.zeros(2), np.array([1.0, 1.0]), ("p", "q"))
    with pytest.raises(DataError, match="a relevance is below 0"):
        judge_ranking(np.zeros(2), np.array([1.0, -1.0]), ("p", "p"))
