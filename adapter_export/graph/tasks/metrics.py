"""Metrics of each task type, computed by scikit-learn, SciPy and seqeval."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from seqeval.metrics.sequence_labeling import get_entities
from sklearn import metrics as sk
from sklearn.neighbors import NearestNeighbors

from adapter_export.errors import DataError
from adapter_export.graph.tasks import TASK_TYPES, Learnt
from adapter_export.tables import number_of

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Truths = npt.NDArray[np.bool_]

_NDCG_AT = 10
_RECALL_AT = (1, 5, 10)

_SCORES = 2**22
"""Cosines in memory at a time: 32 MiB."""

_SAME = 1e-9
"""Difference up to which cosines are equal: vectors have 24 bits, and sums of equal numbers differ in their last."""

_NEARLY_ALL = 0.98
"""The share of rows from which one answer counts as the answer to nearly all."""

_ENOUGH = 20
"""The fewest answers that show a collapse: of fewer, one class may be all by chance."""


@dataclass(frozen=True)
class Metric:
    """A metric: its name, its range, and true if more is better."""

    name: str
    least: float = 0.0
    most: float = 1.0
    more_is_better: bool = True

    @property
    def words(self) -> str:
        """The name for people: `macro-F1`, `mean absolute error`."""
        return _WORDS.get(self.name, self.name.replace("_", " "))


_WORDS = {
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "f1": "F1",
    "r2": "R²",
    "mrr": "MRR",
    "ndcg_at_10": "NDCG@10",
    **{f"recall_at_{count}": f"recall@{count}" for count in _RECALL_AT},
    "pearson": "Pearson",
    "spearman": "Spearman",
}
_ACCURACY, _MACRO_F1, _MICRO_F1 = Metric("accuracy"), Metric("macro_f1"), Metric("micro_f1")
_SPEARMAN, _PEARSON = Metric("spearman", least=-1.0), Metric("pearson", least=-1.0)
_ERROR = Metric("mean_absolute_error", most=math.inf, more_is_better=False)

CLASSES = (_ACCURACY, _MACRO_F1)
LABEL_SETS = (_MICRO_F1, _MACRO_F1, Metric("subset_accuracy"), Metric("average_precision"))
CHOICES = (_ACCURACY,)
ENTITIES = (Metric("f1"), Metric("precision"), Metric("recall"), _ACCURACY, _MACRO_F1)
TAGS = (_MACRO_F1, _ACCURACY)
SPANS = (Metric("exact_match"), Metric("f1"))
NUMBERS = (_PEARSON, _SPEARMAN, Metric("r2", least=-math.inf), _ERROR)
SIMILARITIES = (_SPEARMAN, _PEARSON)
NEIGHBOURS = (Metric("neighbour_accuracy"),)
RANKINGS = (Metric("mrr"), Metric("ndcg_at_10"))
RETRIEVALS = (*reversed(RANKINGS), *(Metric(f"recall_at_{count}") for count in _RECALL_AT))
TOKENS = (Metric("perplexity", least=1.0, most=math.inf, more_is_better=False), Metric("token_accuracy"))
WRITINGS = (*TOKENS, SPANS[0])
"""Metrics of prompts with answers: those of their tokens, and the share of answers that are written word for word."""


FEWEST_COMPARED = 20
"""Fewest rows whose scores can tell an adapter from a baseline."""

_DRAWS, _LEVEL = 1000, 0.025
"""Bootstrap draws of a paired difference, and the quantile that must be above 0."""


@dataclass(frozen=True)
class Decisions:
    """Right and given answers: classes by number, of rows or of words, or all labels [rows, labels]."""

    classes: tuple[str, ...]
    right: Indices | Truths
    answered: Indices | Truths

    @property
    def majority(self) -> Majority | None:
        """Scores of always answering the most frequent label; `None` for sets of labels, and without rows."""
        if self.right.ndim != 1 or not len(self.right):
            return None
        right = self.right.astype(np.int64)
        label = int(np.bincount(right).argmax())
        accuracy, macro = _of_classes(right, np.full_like(right, label))
        return Majority(self.classes[label], {_ACCURACY.name: accuracy, _MACRO_F1.name: macro})

    def recall(self, label: str) -> tuple[int, int]:
        """Return the right answers among the rows or words of a class, and their number."""
        at = self.classes.index(label)
        of_class = self.right == at if self.right.ndim == 1 else self.right[:, at].astype(bool)
        hits = self.answered == at if self.right.ndim == 1 else self.answered[:, at].astype(bool)
        return int((of_class & hits).sum()), int(of_class.sum())

    @property
    def collapse(self) -> str | None:
        """A clause if nearly all answers are one class and the labels are not; `None` for sets."""
        if self.right.ndim != 1 or len(self.right) < _ENOUGH:
            return None
        label = int(np.bincount(self.answered).argmax())
        answered, right = (float((side == label).mean()) for side in (self.answered, self.right))
        if answered < _NEARLY_ALL or right == 1 or (answered < 1 and right >= _NEARLY_ALL):
            return None
        return (
            f"`{self.classes[label]}` is {answered:.1%} of the answers and {right:.1%} of the labels: the adapter "
            "hardly tells classes apart"
        )


@dataclass(frozen=True)
class Majority:
    """Scores of answering the most frequent label to every row.

    Attributes:
        label: the label.
        scores: accuracy and macro-F1.
    """

    label: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Judged:
    """Rows with their answers and targets.

    Attributes:
        metrics: metrics of the task type, the primary one first.
        measure: returns them in this order over some units; NaN for an undefined one.
        unit: resampling unit of each row: itself or its group; −1 is skipped.
        answers: answer of each row, as in JSON.
        truths: right answer of each row, as in JSON.
        decisions: for a confusion matrix; `None` if the answers are not classes.
        certainty: for calibration, the probability of each decision and true if it was right; `None` if undefined.
        notes: skipped rows, each a clause.
        numeric: answers are numbers, which rounding changes slightly.
        each: of the metrics that are means over units: the value of each unit, by metric.
    """

    metrics: tuple[Metric, ...]
    measure: Callable[[Indices], Sequence[float]]
    unit: Indices
    answers: tuple[Any, ...]
    truths: tuple[Any, ...]
    decisions: Decisions | None = None
    certainty: tuple[Floats, Truths] | None = None
    notes: tuple[str, ...] = ()
    numeric: bool = False
    each: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """The number of units."""
        return int(self.unit.max(initial=-1)) + 1


def judge_tokens(losses: Floats, right: Floats) -> Judged:
    """Judge next tokens [tokens]: the cross-entropy of each in nats, and 1 where it is the likeliest, else 0."""

    def measure(units: Indices) -> Sequence[float]:
        return float(np.exp(losses[units].mean())), float(right[units].mean())

    return Judged(TOKENS, measure, np.arange(len(losses)), (), ())


def judge_texts(
    losses: Sequence[Floats], right: Sequence[Truths], written: Sequence[str] | None, answers: Sequence[str]
) -> Judged:
    """Judge the tokens of texts, and the answers that were written.

    Perplexity is exp(Σ loss / Σ tokens) over all tokens of the rows, so that long texts weigh more. Draws for intervals
    take whole rows, since tokens of one text depend on each other. A written answer is right if it equals the answer
    without spaces around them.

    Args:
        losses: of each row, the cross-entropy of its tokens in nats, [tokens].
        right: of each row, true for each token that is the likeliest.
        written: the generated text of each row; `None` if the rows are texts without answers.
        answers: the right answers of the rows, or their texts.
    """
    sums, counts = np.array([of_row.sum() for of_row in losses]), np.array([len(of_row) for of_row in losses])
    hits = np.array([of_row.sum() for of_row in right])
    exact = [text.strip() == other.strip() for text, other in zip(written or (), answers, strict=written is not None)]
    each = {} if written is None else {"exact_match": np.array(exact, np.float64)}

    def measure(units: Indices) -> Sequence[float]:
        tokens = counts[units].sum()
        of_tokens = float(np.exp(sums[units].sum() / tokens)), float(hits[units].sum() / tokens)
        return *of_tokens, *(float(values[units].mean()) for values in each.values())

    metrics = TOKENS if written is None else WRITINGS
    return Judged(metrics, measure, np.arange(len(losses)), tuple(written or answers), tuple(answers), each=each)


def judge_classes(probabilities: Floats, right: Indices, labels: Sequence[str]) -> Judged:
    """Judge one class for each row: `probabilities` [rows, classes], and the indices of the right ones [rows]."""
    answered = probabilities.argmax(-1)

    def measure(units: Indices) -> Sequence[float]:
        return _of_classes(right[units], answered[units])

    return Judged(
        CLASSES,
        measure,
        np.arange(len(right)),
        tuple(labels[index] for index in answered),
        tuple(labels[index] for index in right),
        Decisions(tuple(labels), right, answered),
        (probabilities.max(-1), answered == right),
        each={"accuracy": (answered == right).astype(np.float64)},
    )


def _of_classes(right: Indices, answered: Indices) -> tuple[float, float]:
    """Return the accuracy, and the macro-F1 over the classes that are right or answered somewhere.

    As scikit-learn has them, whose checks of arguments would take most of the time of an interval's thousand draws.
    """
    if not len(right):
        return math.nan, math.nan
    count = int(max(right.max(), answered.max())) + 1
    table = np.bincount(right * count + answered, minlength=count * count).reshape(count, count)
    hits, counts = table.diagonal(), table.sum(0) + table.sum(1)
    each = 2 * hits[counts > 0] / counts[counts > 0]
    return float(hits.sum() / len(right)), float(each.mean())


def judge_label_sets(
    probabilities: Floats, right: Truths, labels: Sequence[str], thresholds: Sequence[float]
) -> Judged:
    """Judge any number of labels for each row: `probabilities` and `right` [rows, labels], a threshold for each label.

    The average precision is the mean over the labels that a row has.
    """
    answered = probabilities >= np.asarray(thresholds)

    def measure(units: Indices) -> Sequence[float]:
        truth, predicted, sure = right[units], answered[units], probabilities[units]
        micro, macro = (sk.f1_score(truth, predicted, average=how, zero_division=0.0) for how in ("micro", "macro"))
        present = np.flatnonzero(truth.any(0))
        precisions = [sk.average_precision_score(truth[:, label], sure[:, label]) for label in present]
        return micro, macro, sk.accuracy_score(truth, predicted), np.mean(precisions) if precisions else math.nan

    return Judged(
        LABEL_SETS,
        measure,
        np.arange(len(right)),
        _sets(answered, labels),
        _sets(right, labels),
        Decisions(tuple(labels), right, answered),
        (probabilities.ravel(), right.ravel()),
        each={"subset_accuracy": (answered == right).all(-1).astype(np.float64)},
    )


def _sets(rows: Truths, labels: Sequence[str]) -> tuple[list[str], ...]:
    return tuple([label for label, applies in zip(labels, row, strict=True) if applies] for row in rows)


def judge_choices(scores: Sequence[Floats], right: Indices) -> Judged:
    """Judge one of several choices for each row: a score for each choice, and the indices of the right ones [rows]."""
    answered = np.array([int(of_row.argmax()) for of_row in scores], np.int64)

    def measure(units: Indices) -> Sequence[float]:
        return (float(sk.accuracy_score(right[units], answered[units])),)

    def sure(of_row: Floats) -> float:
        shifted = np.exp(of_row - of_row.max())
        return float(shifted.max() / shifted.sum())

    return Judged(
        CHOICES,
        measure,
        np.arange(len(right)),
        tuple(answered.tolist()),
        tuple(right.tolist()),
        certainty=(np.array([sure(of_row) for of_row in scores]), answered == right),
        each={"accuracy": (answered == right).astype(np.float64)},
    )


def metrics_of(problem: Learnt, labels: Sequence[str] = (), *, compared: bool = False) -> tuple[Metric, ...]:
    """Return the metrics of the type that scores rows, the primary one first.

    Args:
        problem: the type.
        labels: the names of its classes.
        compared: true if vectors of texts are compared, with numbers if the type has answers.
    """
    kind = TASK_TYPES[problem]
    return SIMILARITIES if compared and kind.has_answers else kind.metrics(labels)


def has_entities(labels: Sequence[str]) -> bool:
    """Return true if labels mark the beginnings and insides of entities: `B-PER`, `I-PER`, `O`."""
    return any(label.startswith("B-") for label in labels) and all(re.fullmatch("O|[BIES]-.+", each) for each in labels)


def judge_tags(
    answered: Sequence[Indices], right: Sequence[Indices], labels: Sequence[str], sure: Sequence[Floats]
) -> Judged:
    """Judge the labels of the words of each row, and `sure`, their probabilities.

    Of labels such as `B-PER`, entities count as in CoNLL-2000: right are those whose kind, first and last word are.
    """
    lengths = [len(row) for row in right]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat_right, flat_answered = np.concatenate(right), np.concatenate(answered)
    named = [[[labels[index] for index in row] for row in side] for side in (answered, right)]
    entities = has_entities(labels)
    counts = np.zeros((len(right), 3))
    if entities:
        for at, (predicted, truth) in enumerate(zip(*named, strict=True)):
            predicted_entities, true = set(get_entities(predicted)), set(get_entities(truth))
            counts[at] = len(predicted_entities & true), len(predicted_entities), len(true)

    def measure(units: Indices) -> Sequence[float]:
        places = np.concatenate([np.arange(starts[unit], starts[unit + 1]) for unit in units])
        accuracy, macro = _of_classes(flat_right[places], flat_answered[places])
        if not entities:
            return macro, accuracy
        hits, predictions, true = counts[units].sum(0)
        # without entities to divide by, a score is 0, as in seqeval
        return (2 * hits / (predictions + true or 1), hits / (predictions or 1), hits / (true or 1), accuracy, macro)

    return Judged(
        ENTITIES if entities else TAGS,
        measure,
        np.arange(len(right)),
        tuple(named[0]),
        tuple(named[1]),
        Decisions(tuple(labels), flat_right, flat_answered),
        (np.concatenate(sure), flat_answered == flat_right),
    )


def judge_spans(answered: Sequence[str], right: Sequence[Sequence[str]]) -> Judged:
    """Judge a part of a text for each row, held against each of the right answers; the best of them counts.

    As the official script of SQuAD 1.1 does (Rajpurkar et al. 2016, `evaluate-v1.1.py`); no answer is the empty text.
    """
    exact = [
        max(plain(answer) == plain(reference) for reference in references)
        for answer, references in zip(answered, right, strict=True)
    ]
    shared = [
        max(token_f1(answer, reference) for reference in references)
        for answer, references in zip(answered, right, strict=True)
    ]
    scores = np.array([exact, shared], np.float64).T
    return Judged(
        SPANS,
        lambda units: tuple(scores[units].mean(0).tolist()),
        np.arange(len(right)),
        tuple(answered),
        tuple(list(reference) for reference in right),
        each={"exact_match": scores[:, 0], "f1": scores[:, 1]},
    )


def plain(text: str) -> str:
    """Return an answer as SQuAD compares it: lower case, without punctuation, articles and extra spaces."""
    letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())


def token_f1(answered: str, right: str) -> float:
    """Return the F1 of the words of two answers: 2·shared / (words of the one + words of the other)."""
    words, reference = plain(answered).split(), plain(right).split()
    if not words or not reference:
        return float(words == reference)
    return 2 * sum((Counter(words) & Counter(reference)).values()) / (len(words) + len(reference))


def judge_numbers(answered: Floats, right: Floats) -> Judged:
    """Judge numbers [rows, numbers]; the metrics are means over the columns."""

    def measure(units: Indices) -> Sequence[float]:
        predicted, truth = answered[units], right[units]
        columns = list(zip(predicted.T, truth.T, strict=True))
        pearson, spearman = (np.mean([correlation(how, *pair) for pair in columns]) for how in ("pearson", "spearman"))
        varies = len(units) > 1 and all(np.ptp(column) > 0 for column in truth.T)
        r2 = sk.r2_score(truth, predicted) if varies else math.nan
        return float(pearson), float(spearman), r2, sk.mean_absolute_error(truth, predicted)

    pairs = tuple(answered.tolist()), tuple(right.tolist())
    errors = np.abs(answered - right).mean(-1)
    return Judged(NUMBERS, measure, np.arange(len(right)), *pairs, numeric=True, each={"mean_absolute_error": errors})


def correlation(how: str, first: Floats, other: Floats) -> float:
    """Return Pearson's or Spearman's correlation of two columns; NaN where one of them does not vary."""
    if len(first) < 2 or not np.ptp(first) or not np.ptp(other):
        return math.nan
    return float((stats.pearsonr if how == "pearson" else stats.spearmanr)(first, other).statistic)


def judge_similarities(cosines: Floats, right: Floats) -> Judged:
    """Judge the cosines of pairs of vectors by how similar the pairs should be [rows]."""

    def measure(units: Indices) -> Sequence[float]:
        return [correlation(metric.name, cosines[units], right[units]) for metric in SIMILARITIES]

    pairs = tuple(cosines.tolist()), tuple(right.tolist())
    return Judged(SIMILARITIES, measure, np.arange(len(right)), *pairs, numeric=True)


def judge_neighbours(vectors: Floats, classes: Sequence[str]) -> Judged:
    """Score vectors [rows, width] by the class of the nearest other row by cosine.

    Raises:
        DataError: there is only one row.
    """
    if len(vectors) < 2:
        raise DataError("a single row has no neighbour", expected="at least two rows")
    near = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vectors)
    nearest = near.kneighbors(return_distance=False)[:, 0]  # without a query, no row is its own neighbour
    answered = [classes[at] for at in nearest]
    hits = np.array([label == truth for label, truth in zip(answered, classes, strict=True)], np.float64)
    return Judged(
        NEIGHBOURS,
        lambda units: (float(hits[units].mean()),),
        np.arange(len(hits)),
        tuple(answered),
        tuple(classes),
        each={"neighbour_accuracy": hits},
    )


def judge_ranking(scores: Floats, relevances: Floats, groups: Sequence[str]) -> Judged:
    """Judge the order that scores [rows] give to the rows of each group, by how relevant each row is: 0 or more.

    The first row with a relevance above 0 decides the reciprocal rank; of rows with one score the worst order counts.

    Raises:
        DataError: a relevance is below 0, or no group has two rows and one that is relevant.
    """
    if (relevances < 0).any():
        raise DataError("a relevance is below 0", found=float(relevances.min()), expected="0 or more")
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    judged = {name: of_group for name, of_group in rows.items() if len(of_group) > 1 and relevances[of_group].any()}
    if not judged:
        raise DataError(
            "nothing can be ranked",
            found=number_of(len(rows), "group"),
            expected="a group with at least two rows, one of them relevant",
        )
    unit, each = np.full(len(groups), -1, np.int64), []
    for number, rows_of_group in enumerate(judged.values()):
        unit[rows_of_group] = number
        ranks = stats.rankdata(-scores[rows_of_group], method="max")
        gain = sk.ndcg_score(relevances[rows_of_group][None], scores[rows_of_group][None], k=_NDCG_AT)
        each.append((1 / ranks[relevances[rows_of_group] > 0].min(), gain))
    values, left_out = np.array(each), len(rows) - len(judged)
    note = f"groups left out, for they have one row only, or none that is relevant: {left_out:,} of {len(rows):,}"
    return Judged(
        RANKINGS,
        lambda units: tuple(values[units].mean(0).tolist()),
        unit,
        tuple(scores.tolist()),
        tuple(relevances.tolist()),
        notes=(note,) if left_out else (),
        numeric=True,
        each={"mrr": values[:, 0], "ndcg_at_10": values[:, 1]},
    )


def cosines(queries: Sequence[Floats], documents: Sequence[Floats]) -> Floats:
    """Return the cosine of each query vector with each document vector, [queries, documents]."""
    unit, others = (
        vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
        for vectors in (np.stack(queries), np.stack(documents))
    )
    scores: Floats = unit @ others.T
    return scores


def judge_retrieval(
    results: Sequence[Sequence[Floats]],
    texts: Sequence[Sequence[Hashable]],
    score: Callable[[Sequence[Floats], Sequence[Floats]], Floats] = cosines,
) -> Judged:
    """Judge results of texts [rows][texts]: each anchor ranks all documents of the rows by a score, highest first.

    A row is an anchor, its positive and any negatives; equal texts are one. All positives of an anchor are relevant,
    and a document that equals the anchor is left out. Of equal scores the worst order counts. The answer to a row is
    the nearest document. Recall@k is the part of an anchor's positives among its first k documents.

    Raises:
        DataError: there is a single document.
    """
    documents: dict[Hashable, int] = {}
    anchors: dict[Hashable, int] = {}
    relevant: list[dict[int, None]] = []
    pool, queries = list[Floats](), list[Floats]()
    for row_vectors, (anchor, *others) in zip(results, texts, strict=True):
        for document, vector in zip(others, row_vectors[1:], strict=True):
            if documents.setdefault(document, len(documents)) == len(pool):
                pool.append(vector)
        if anchors.setdefault(anchor, len(anchors)) == len(queries):
            queries.append(row_vectors[0])
            relevant.append({})
        relevant[anchors[anchor]][documents[others[0]]] = None
    if len(pool) < 2:
        raise DataError("nothing can be ranked", found=f"{len(pool)} document", expected="at least two")
    each, nearest = list[list[float]](), list[int]()
    size = max(1, _SCORES // len(pool))
    for start in range(0, len(queries), size):
        scores = score(queries[start : start + size], pool)
        for place, (anchor, row_vectors) in enumerate(
            zip(list(anchors)[start : start + size], scores, strict=True), start
        ):
            right = list(relevant[place])
            same = documents.get(anchor)
            if same is not None and same not in right:
                row_vectors[same] = -np.inf
            nearest.append(int(row_vectors.argmax()))
            hits = np.sort(row_vectors[right])[::-1]
            row_vectors[right] = -np.inf
            ranks = np.array([np.count_nonzero(row_vectors >= hit - _SAME) for hit in hits]) + np.arange(
                1, len(hits) + 1
            )
            each.append(_of_ranks(ranks))
    values, names = np.array(each), list(documents)
    rows = np.array([anchors[anchor] for anchor, *_ in texts], np.int64)
    return Judged(
        RETRIEVALS,
        lambda units: tuple(values[units].mean(0).tolist()),
        rows,
        tuple(names[nearest[row]] for row in rows),
        tuple(positive for _, positive, *_ in texts),
        each={metric.name: values[:, at] for at, metric in enumerate(RETRIEVALS)},
    )


def _of_ranks(ranks: Indices) -> list[float]:
    """Return NDCG, the reciprocal rank and the recalls of the ranks, from 1 and rising, of all relevant documents."""
    first = np.arange(1, min(len(ranks), _NDCG_AT) + 1)
    gain, best = (float((1 / np.log2(places + 1)).sum()) for places in (ranks[ranks <= _NDCG_AT], first))
    return [gain / best, float(1 / ranks[0]), *(float((ranks <= count).mean()) for count in _RECALL_AT)]


def worded_scores(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the metrics among scores, each by its name for people."""
    return [(Metric(name).words, value) for name, value in scores.items() if name != "loss"]


def is_better(ours: Judged, other: Judged, metric: Metric, seed: int = 0) -> bool:
    """Return whether a metric is better beyond the 95 % interval of the paired difference (percentile bootstrap)."""
    at = ours.metrics.index(metric)
    generator = np.random.default_rng(seed)
    draws = [generator.choice(ours.units, ours.units) for _ in range(_DRAWS if ours.units > 1 else 0)]
    differences = np.array([ours.measure(units)[at] - other.measure(units)[at] for units in draws])
    differences = differences[np.isfinite(differences)] * (1 if metric.more_is_better else -1)
    return bool(len(differences)) and float(np.quantile(differences, _LEVEL)) > 0
