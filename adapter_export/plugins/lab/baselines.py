"""Baselines of an evaluation: the base's own head, its vectors as they are, and a logistic regression on them.

They run in ONNX Runtime, on a machine without torch. Training has baselines of its own, in torch: it needs no
scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from adapter_export.format.tabular.eval_data import EvalData
from adapter_export.graph.tasks.metrics import FEWEST_COMPARED, Judged, Majority, is_better
from adapter_export.plugins.lab.contest import Contestant, Measured, measure
from adapter_export.plugins.lab.eval_rows import EvalRows, Results, read_rows
from adapter_export.plugins.lab.scores import NO_INTERVALS, Resampling, Score, score
from adapter_export.reporting import Reporter
from adapter_export.tables import number_of

OWN_HEAD, FROZEN, LINEAR, RECORDED = "base head", "frozen base", "linear", "linear"

_MOST_ROWS = 2000
"""Training rows that the classifier learns from: more change its score by less than its interval."""

_LEAST_LOG = -30.0
"""Log probability of a class without training rows."""


@dataclass(frozen=True)
class Baseline:
    """Scores of the same rows without the adapter.

    Attributes:
        name: heading of its column.
        meaning: what answers the rows.
        scores: its scores by metric, without intervals.
        beaten: whether the adapter's first metric is better beyond the 95 % interval of the difference.
    """

    name: str
    meaning: str
    scores: Mapping[str, float]
    beaten: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return asdict(self)


def baselines_of(
    entry: Measured, data: EvalData, training: EvalData | None, resampling: Resampling, reporter: Reporter
) -> Iterator[Baseline]:
    """Yield the baselines of measured rows.

    Args:
        entry: the answers of the adapter.
        data: the rows.
        training: rows that a logistic regression learns from; `None` for the recorded score of the same file.
        resampling: of the intervals.
        reporter: receives the numbers of answered rows.
    """
    contestant, kind = entry.contestant, entry.rows.task.kind
    head = _own_head(contestant)
    output = _hidden_output(contestant)
    if head is not None:
        yield _compared(entry, data, head, "the base's own head", resampling, reporter)
    elif kind.is_vector and output is not None:
        frozen = FrozenContestant(**_facts(contestant, FROZEN), output=output)
        yield _compared(entry, data, frozen, "the base without an adapter, mean of the tokens", resampling, reporter)
    if kind.one_label and training is not None and output is not None:
        frozen = FrozenContestant(**_facts(contestant, LINEAR), output=output)
        linear = LinearContestant(**vars(frozen), classifier=frozen.fitted(training, resampling.seed, reporter))
        meaning = f"logistic regression on the frozen base, learnt from {training.path.name}"
        yield _compared(entry, data, linear, meaning, resampling, reporter)


def recorded_baseline(training: Mapping[str, Any], part: str, first: str, ours: Score) -> Baseline | None:
    """Return the baseline that training measured on the same file, in the part of the record; `None` if there is none.

    Args:
        training: the training record.
        part: `test` or `validation`.
        first: name of the adapter's first metric.
        ours: its value with its interval.
    """
    record = training.get("baseline")
    scores = record.get(part) if isinstance(record, Mapping) else None
    if record is None or not isinstance(scores, Mapping) or first not in scores:
        return None
    name = LINEAR if "regression" in str(record.get("name")) else FROZEN
    known = {metric: float(value) for metric, value in scores.items() if isinstance(value, int | float)}
    return Baseline(name, f"{record['name']}, as recorded by training", known, _is_above(ours, known[first]))


def notes_on(
    baselines: Sequence[Baseline], majority: Majority | None, judged: Judged, scores: Mapping[str, Score]
) -> Iterator[str]:
    """Yield a clause for each baseline that the adapter does not beat."""
    metric = judged.metrics[0]
    ours = scores[metric.name]
    if judged.units < FEWEST_COMPARED or ours.value is None:
        return
    others = [(baseline.meaning, baseline.scores.get(metric.name)) for baseline in baselines if not baseline.beaten]
    if majority is not None and not _is_above(ours, majority.scores.get(metric.name, 0.0)):
        others.append((f"always answering `{majority.label}`", majority.scores.get(metric.name)))
    for meaning, value in others:
        if value is not None:
            rows = number_of(judged.units, "row")
            yield f"{metric.words} {ours.value:.3f} on {rows} is not clearly better than {value:.3f} of {meaning}"


@dataclass(frozen=True)
class FrozenContestant(Contestant):
    """The base without an adapter: each text is the mean of its tokens.

    Attributes:
        output: the base's hidden states, [batch, tokens, width].
    """

    output: str

    def answer(self, rows: EvalRows, reporter: Reporter) -> Results:
        """Return a vector for each text; see `Contestant.answer`."""
        answers, session = list[list[np.ndarray]](), self.reader.session
        for count, reading in enumerate(rows.read, 1):
            vectors = []
            for row in reading.rows:
                arrays = self.reader.arrays([row], self.adapter)
                hidden = self.reader.without_padding({self.output: session.run(arrays)[self.output][0]}, row)
                vectors.append(hidden[self.output].astype(np.float64).mean(0))
            answers.append(vectors)
            reporter.step("", count, len(rows.read))
        return answers

    def fitted(self, training: EvalData, seed: int, reporter: Reporter) -> LogisticRegression:
        """Fit a classifier on training rows, drawn with the seed if there are many."""
        rows = read_rows(training, self.reader, self.adapter, self.task)
        drawn = np.sort(np.random.default_rng(seed).permutation(len(rows.rows))[:_MOST_ROWS])
        rows, _ = rows.only(drawn, [[]] * len(rows.read))
        reporter.step(f"reading {number_of(len(rows.rows), 'training row')} with the frozen base")
        features = np.stack([vectors[0] for vectors in self.answer(rows, Reporter())])
        right = [self.task.labels.index(row.answer) for row in rows.rows]
        return LogisticRegression(max_iter=1000).fit(features, right)


@dataclass(frozen=True)
class LinearContestant(FrozenContestant):
    """A logistic regression on the vectors of the frozen base.

    Attributes:
        classifier: the regression; its classes are numbers of labels.
    """

    classifier: LogisticRegression

    def answer(self, rows: EvalRows, reporter: Reporter) -> Results:
        """Return the log probability of each label for each row."""
        vectors = super().answer(rows, reporter)
        logs = np.full((len(vectors), len(self.task.labels)), _LEAST_LOG)
        found = self.classifier.predict_log_proba(np.stack([of_row[0] for of_row in vectors]))
        logs[:, self.classifier.classes_] = np.maximum(found, _LEAST_LOG)
        return [[row] for row in logs]


def _facts(contestant: Contestant, name: str) -> dict[str, Any]:
    names = ("source", "bundle", "adapter", "reader")
    return {"name": name, **{fact: getattr(contestant, fact) for fact in names}}


def _own_head(contestant: Contestant) -> Contestant | None:
    """Return the base head of a bundle if it answers the task of an adapter."""
    name = contestant.bundle.manifest.head
    if name in (None, contestant.adapter):
        return None
    head = Contestant(**{**_facts(contestant, OWN_HEAD), "adapter": name})
    facts = [(each.task.type, each.task.input, sorted(each.task.labels)) for each in (head, contestant)]
    return head if facts[0] == facts[1] else None


def _hidden_output(contestant: Contestant) -> str | None:
    """Return the base's hidden states: its first output of numbers for each token; `None` without one."""
    manifest = contestant.bundle.manifest
    width = next((site.width for site in manifest.sites if site.layer is not None), None)
    outputs = (record for record in manifest.base_outputs if len(record.axes) == 3 and record.axes[-1] == width)
    return next((record.name for record in outputs), None)


def _compared(
    entry: Measured, data: EvalData, other: Contestant, meaning: str, resampling: Resampling, reporter: Reporter
) -> Baseline:
    """Measure a baseline on the same rows."""
    (measured,) = measure([other], data, reporter)
    found = score(measured.judged, NO_INTERVALS)
    scores = {name: value.value for name, value in found.items() if value.value is not None}
    beaten = is_better(entry.judged, measured.judged, entry.judged.metrics[0], resampling.seed)
    return Baseline(other.name, meaning, scores, beaten)


def _is_above(ours: Score, other: float) -> bool:
    """Return whether the lower end of a score, or a score without an interval, exceeds another score."""
    low = ours.value if ours.low is None else ours.low
    return low is not None and low > other
