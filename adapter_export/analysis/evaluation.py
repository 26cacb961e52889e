"""How well an adapter does on labelled rows: scores with intervals, where it errs, and what it was held to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from adapter_export.analysis.eval_rows import Asked, Results, judge, shown_text, slice_values
from adapter_export.bundle.ablation import effects, note_of
from adapter_export.bundle.opened import OpenedBundle
from adapter_export.errors import MissedGateError, UsageError, argument, quoted
from adapter_export.format.adapter_files import GRAPH_FILE
from adapter_export.numerics.metrics import Decisions, Floats, Indices, Judged, Metric, metrics_of
from adapter_export.tables import Table, one_line

RESAMPLES = 1000
"""How often rows are drawn for an interval."""

_PERCENTILES = (2.5, 97.5)
_BINS = 10
_MOST_SLICES = 50
_MOST_CLASSES = 12
_MOST_CONFUSED = 15
_SHOWN = 20
_LONGEST = 80

_DRAWS = 16
_SLACK = 1e-6
"""What the sums of a metric round by: training may have taken them in float32."""

_PARTS = ("test", "validation")


@dataclass(frozen=True)
class Score:
    """The value of a metric with its 95 % interval; null where it is not defined, such as a correlation of one row.

    Attributes:
        value: on all rows.
        low: the lower end of the interval.
        high: its upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return "–" if self.value is None else f"{self.value:.4f}"

    @property
    def interval(self) -> str:
        """Both ends, as tables show them."""
        return "–" if self.low is None or self.high is None else f"{self.low:.4f} to {self.high:.4f}"


def score(
    judged: Judged, *, units: Indices | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Score]:
    """Return the metrics over some units, or all of them, by name.

    The intervals are the 2.5th and the 97.5th percentile over `resamples` draws of as many units with replacement
    (percentile bootstrap; Efron & Tibshirani 1993, §13.3); draws in which a metric is not defined do not count. There
    is none of a single unit.
    """
    whole = np.arange(judged.units) if units is None else units
    return summarised(judged, whole, draws(judged, whole, resamples, seed))


def draws(judged: Judged, units: Indices, resamples: int, seed: int) -> Floats:
    """Return the metrics [draws, metrics] of as many units drawn with replacement; no draws of a single unit.

    The draws of one seed from equally many units are the same, so that those of two sides are paired.
    """
    generator, count = np.random.default_rng(seed), resamples if len(units) > 1 else 0
    drawn = [judged.measure(generator.choice(units, len(units))) for _ in range(count)]
    return np.array(drawn, np.float64).reshape(count, len(judged.metrics))


def summarised(judged: Judged, units: Indices, drawn: Floats) -> dict[str, Score]:
    """Return the metrics over some units, by name, with the intervals that draws give."""
    ends = percentiles(drawn)
    return {
        metric.name: Score(*map(_number, (value, *ends[:, at])))
        for at, (metric, value) in enumerate(zip(judged.metrics, judged.measure(units), strict=True))
    }


def percentiles(drawn: Floats) -> Floats:
    """Return both ends [2, metrics] of the interval of 95 %; NaN where there is no draw."""
    bounds = np.full((2, drawn.shape[1]), np.nan)
    there = ~np.isnan(drawn).all(0) & bool(len(drawn))
    if there.any():
        bounds[:, there] = np.nanpercentile(drawn[:, there], _PERCENTILES, axis=0)
    return bounds


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class ClassScore:
    """How well one class is found: its precision, recall and F1, and how often it is right (support)."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


def class_scores(decisions: Decisions) -> tuple[ClassScore, ...]:
    """Return the scores of each class; 0 where there is nothing to divide by."""
    numbers = sk.precision_recall_fscore_support(
        decisions.right, decisions.answered, labels=range(len(decisions.classes)), zero_division=0.0
    )
    columns = (column.tolist() for column in numbers)
    return tuple(ClassScore(*row) for row in zip(decisions.classes, *columns, strict=True))


def confusion(decisions: Decisions) -> tuple[tuple[int, ...], ...] | None:
    """Return how often each class (a row) was answered as each class (a column); none for sets of labels."""
    if decisions.right.ndim != 1:
        return None
    counts = sk.confusion_matrix(decisions.right, decisions.answered, labels=range(len(decisions.classes)))
    return tuple(tuple(row) for row in counts.tolist())


@dataclass(frozen=True)
class Bin:
    """The decisions whose probability lies in (low, high], their mean probability, and the fraction that is right."""

    low: float
    high: float
    count: int
    probability: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities mean what they say: ten bins, those without decisions left out.

    Attributes:
        error: the expected calibration error, Σ count·|right − probability| / Σ count (Guo et al. 2017, eq. 3).
        bins: the bins.
    """

    error: float
    bins: tuple[Bin, ...]


def calibrate(judged: Judged) -> Calibration | None:
    """Return the calibration of the probability of each answer; in a multi-label task of each label."""
    if judged.certainty is None:
        return None
    probabilities, right = judged.certainty
    edges = np.linspace(0, 1, _BINS + 1)
    shares, means = calibration_curve(right, probabilities, n_bins=_BINS)
    counts = np.bincount(np.searchsorted(edges[1:-1], probabilities), minlength=_BINS)
    there = np.flatnonzero(counts)
    bins = tuple(
        Bin(float(edges[at]), float(edges[at + 1]), int(counts[at]), float(mean), float(share))
        for at, mean, share in zip(there, means, shares, strict=True)
    )
    error = sum(one.count * abs(one.right - one.probability) for one in bins) / len(right)
    return Calibration(error, bins)


@dataclass(frozen=True)
class Slice:
    """The rows with one value in the column of the slices."""

    value: str
    rows: int
    scores: Mapping[str, Score]


def slice_by(values: Sequence[str], judged: Judged, *, resamples: int, seed: int) -> list[Slice]:
    """Return the scores of the rows of each value, the most frequent first; the first metric has an interval."""
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if judged.unit[row] >= 0:
            rows.setdefault(value, []).append(row)
    found = []
    for value, own in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0])):
        units = np.unique(judged.unit[own])
        whole = score(judged, units=units, resamples=0)
        first = score(_first_metric(judged), units=units, resamples=resamples, seed=seed)
        found.append(Slice(value, len(own), {**whole, **first}))
    return found


def _first_metric(judged: Judged) -> Judged:
    return Judged(
        judged.metrics[:1], lambda units: judged.measure(units)[:1], judged.unit, judged.answers, judged.truths
    )


@dataclass(frozen=True)
class Gate:
    """A bound for a metric: at least for metrics of which more is better, at most for others."""

    metric: str
    bound: float
    value: float | None
    passed: bool


def check_gates(gates: Mapping[str, float], metrics: Sequence[Metric]) -> None:
    """Refuse a bound for a metric that is not measured, or one that it cannot have.

    Raises:
        UsageError: there is such a bound.
    """
    known = {metric.name: metric for metric in metrics}
    for name, bound in gates.items():
        metric = known.get(name)
        if metric is None:
            names = quoted(known)
            what = "is no metric of this task"
            raise UsageError(what, where=argument("gate"), found=f"`{name}`", expected=f"one of {names}")
        if not metric.least <= bound <= metric.most:
            expected = f"{metric.least:g} to {metric.most:g}"
            where = f"{argument('gate')}, `{name}`"
            raise UsageError("the metric cannot have this value", where=where, found=bound, expected=expected)


def hold(gates: Mapping[str, float], metrics: Sequence[Metric], scores: Mapping[str, Score]) -> tuple[Gate, ...]:
    """Hold scores to their bounds; a score that is not defined misses its bound."""
    more_is_better = {metric.name: metric.more_is_better for metric in metrics}

    def passes(name: str, bound: float) -> bool:
        value = scores[name].value
        return value is not None and (value >= bound if more_is_better[name] else value <= bound)

    return tuple(Gate(name, bound, scores[name].value, passes(name, bound)) for name, bound in gates.items())


@dataclass(frozen=True)
class Row:
    """A row where two sides part: its line in the file, its text, what is right, and both answers."""

    line: int
    text: str
    right: Any
    answer: Any
    other: Any


@dataclass(frozen=True)
class Versus:
    """The same rows answered by the reference.

    Attributes:
        reference: what computed them, such as `torch 2.13.0 float32`.
        scores: its scores, without intervals.
        parting: the rows whose answers differ; of numbers those that differ by more than is allowed.
        largest: the largest difference of a result (a logit, a number, an element of a vector).
        allowed: the difference that rounding explains.
    """

    reference: str
    scores: Mapping[str, Score]
    parting: tuple[Row, ...]
    largest: float
    allowed: float


def compare(
    asked: Asked, ours: tuple[Judged, Results], theirs: tuple[Judged, Results], reference: str, allowed: float
) -> Versus:
    """Return where two sides part; `allowed` is how far apart their results may be."""
    distances = np.array(
        [
            max(float(np.abs(one - other).max(initial=0)) for one, other in zip(*pair, strict=True))
            for pair in zip(ours[1], theirs[1], strict=True)
        ]
    ).reshape(-1, len(asked.rows))  # pairs that are compared have two texts for each row
    answers = list(zip(asked.rows, ours[0].truths, ours[0].answers, theirs[0].answers, strict=True))
    apart = [
        distances[:, at].max() > allowed if ours[0].numeric else one != other
        for at, (_, _, one, other) in enumerate(answers)
    ]
    return Versus(
        reference,
        score(theirs[0], resamples=0),
        tuple(
            Row(row.line, shown_text(row), right, one, other)
            for (row, right, one, other), part in zip(answers, apart, strict=True)
            if part
        ),
        float(distances.max()),
        allowed,
    )


@dataclass(frozen=True)
class Setting:
    """What is asked of an evaluation.

    Attributes:
        adapter: the adapter.
        data: the file of the rows, or their folder.
        sha256: `data_digest` of all of its rows.
        columns: that were read of it, by the names of the options.
        slices: the column whose values have scores of their own.
        gates: bounds of metrics.
        resamples: how often rows are drawn for an interval.
        seed: of the draws.
        limited: whether rows of the file were left aside.
    """

    adapter: str
    data: Path
    sha256: str
    columns: Mapping[str, str | None]
    slices: str | None
    gates: Mapping[str, float]
    resamples: int
    seed: int
    limited: bool

    def check(self, asked: Asked) -> None:
        """Refuse what cannot be answered before anything is computed.

        Raises:
            UsageError: a gate or the column of the slices cannot be used.
        """
        check_gates(self.gates, metrics_of(asked.task.type, asked.task.labels, compared=asked.compared))
        if self.slices is not None:
            values = set(slice_values(asked.rows, self.slices))
            if len(values) > _MOST_SLICES:
                raise UsageError(
                    "the column has too many values to slice by",
                    where=argument("slices"),
                    found=f"{len(values):,} different values",
                    expected=f"at most {_MOST_SLICES}",
                )


def evaluation(
    bundle: OpenedBundle, setting: Setting, asked: Asked, results: Results, reference: tuple[str, Results] | None
) -> Evaluation:
    """Judge the results of a bundle, and those of a reference that is described beside them.

    Raises:
        DataError: the rows cannot be judged.
    """
    judged, record = judge(asked, results), bundle.record(setting.adapter)
    scores = score(judged, resamples=setting.resamples, seed=setting.seed)
    allowed, digest = record.golden.absolute[str(record.output)], setting.sha256
    notes = [*asked.notes(), *judged.notes]
    held, versus = None, None
    if not setting.limited:
        training = bundle.source(setting.adapter).training
        held, said = hold_record(training, digest, setting.columns, asked, results, allowed)
        notes += [] if said is None else [said]
    if reference is not None:
        versus = compare(asked, (judged, results), (judge(asked, reference[1]), reference[1]), reference[0], allowed)
    notes += filter(None, map(note_of, effects(bundle, [setting.adapter])))
    sliced = []
    if setting.slices is not None:
        values = slice_values(asked.rows, setting.slices)
        sliced = slice_by(values, judged, resamples=setting.resamples, seed=setting.seed)
    source = f"{bundle.record(setting.adapter).source}/{GRAPH_FILE}"
    return Evaluation(
        bundle=str(bundle.folder),
        adapter=setting.adapter,
        digest=bundle.digest,
        source=next(file.sha256 for file in bundle.manifest.files if file.path == source),
        task=asked.task.type,
        data=setting.data.name,
        sha256=digest,
        rows=len(asked.rows),
        runtime=f"onnxruntime {ort.__version__}",
        resamples=setting.resamples,
        seed=setting.seed,
        metrics=judged.metrics,
        scores=scores,
        classes=() if judged.decisions is None else class_scores(judged.decisions),
        confusion=None if judged.decisions is None else confusion(judged.decisions),
        calibration=calibrate(judged),
        sliced_by=setting.slices,
        slices=tuple(sliced),
        versus=versus,
        held=held,
        gates=hold(setting.gates, judged.metrics, scores),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class Evaluation:
    """How well an adapter of a bundle does on the rows of a file.

    Attributes:
        bundle: its path.
        adapter: the name of the adapter.
        digest: the sha256 of the manifest of the bundle.
        source: the sha256 of the adapter's `adapter_graph.json`.
        task: its problem type.
        data: the name of the file.
        sha256: of its contents.
        rows: how many rows were answered.
        runtime: what computed the answers, such as `onnxruntime 1.32.0`.
        resamples: how often rows were drawn for an interval.
        seed: of these draws.
        metrics: the metrics, the one that counts most first.
        scores: each of them with its interval.
        classes: how well each class is found; empty where answers are no classes.
        confusion: how often each class, a row, was answered as each class, a column; none where answers are no classes.
        calibration: whether probabilities mean what they say; none where answers have none.
        sliced_by: the column of the slices, if one was named.
        slices: the scores of the rows of each value of it.
        versus: the same rows answered by the reference, if there is one.
        held: the scores of the training record on this very file, if it has them.
        gates: the bounds that were asked for.
        notes: what the caller should know, each a clause.
    """

    bundle: str
    adapter: str
    digest: str
    source: str
    task: str
    data: str
    sha256: str
    rows: int
    runtime: str
    resamples: int
    seed: int
    metrics: tuple[Metric, ...]
    scores: Mapping[str, Score]
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    calibration: Calibration | None
    sliced_by: str | None
    slices: tuple[Slice, ...]
    versus: Versus | None
    held: Held | None
    gates: tuple[Gate, ...]
    notes: tuple[str, ...]

    @property
    def intervals(self) -> str:
        """How the intervals were made."""
        if not self.resamples:
            return "no intervals"
        what = "groups" if self.task == "ranking" else "rows"
        return f"intervals of 95 %: percentile bootstrap over {what}, {self.resamples:,} draws, seed {self.seed}"

    def remarks(self) -> Iterator[str]:
        """Yield in sentences what tables do not say: how the intervals were made, and what the scores were held to."""
        yield f"{self.intervals}."
        if self.versus is not None:
            count = len(self.versus.parting)
            alike = f"part in {count:,} of {self.rows:,} rows" if count else f"answer all {self.rows:,} rows alike"
            largest = f"largest difference of a result {self.versus.largest:.1e} (rounding: {self.versus.allowed:.1e})"
            yield f"the bundle and {self.versus.reference} {alike}; {largest}."
        if self.held is not None:
            scores = ", ".join(f"{name} {value:.4f}" for name, value in self.held.scores.items())
            verdict = "confirmed" if self.held.passed else "contradicted"
            lines = [f"{line}" for line in self.held.uncertain[:_SHOWN]]
            more = ", …" if len(self.held.uncertain) > _SHOWN else ""
            may = f"; rounding may change the answers of lines {', '.join(lines)}{more}" if lines else ""
            yield f"the record of training, measured on this very file ({self.held.part}: {scores}), is {verdict}{may}."

    @property
    def passed(self) -> bool:
        """Whether no gate is missed and the record of training is confirmed where it can be."""
        return all(gate.passed for gate in self.gates) and (self.held is None or self.held.passed)

    def raise_for_failure(self) -> None:
        """Raise an error for the first gate that is missed, or for a training record that the bundle contradicts.

        Raises:
            MissedGateError: there is one.
        """
        for fault in self.faults():
            raise fault

    def faults(self) -> Iterator[MissedGateError]:
        """Yield an error for each gate that is missed and each score of the record that is contradicted."""
        more_is_better = {metric.name: metric.more_is_better for metric in self.metrics}
        where = f"adapter `{self.adapter}` on {self.data}"
        for gate in self.gates:
            if not gate.passed:
                bound = f"at {'least' if more_is_better[gate.metric] else 'most'} {gate.bound:g}"
                value = "no value" if gate.value is None else f"{gate.value:.4f}"
                raised = MissedGateError(f"`{gate.metric}` misses its gate", where=where, found=value, expected=bound)
                yield raised
        if self.held is not None and not self.held.passed:
            for name, recorded in self.held.scores.items():
                if not self.held.low[name] <= recorded <= self.held.high[name]:
                    yield MissedGateError(
                        f"`{name}` is not what the record of training says of this very file",
                        where=where,
                        found=f"{self.held.found[name]:.4f}, where rounding explains"
                        f" {self.held.low[name]:.4f} to {self.held.high[name]:.4f}",
                        expected=f"{recorded:.4f}",
                        fix="check the bundle against its model, and the tokenizer, labels and columns",
                    )

    def to_json(self) -> dict[str, Any]:
        """Return all of it in JSON's own types."""
        document = asdict(self)
        document["metrics"] = [metric.name for metric in self.metrics]
        return {"passed": self.passed, **document}

    def table(self) -> Table:
        """Return a line for each metric."""
        other = {} if self.versus is None else self.versus.scores
        rows = [
            (metric.words, self.scores[metric.name], self.scores[metric.name].interval)
            + ((other[metric.name],) if other else ())
            for metric in self.metrics
        ]
        title = f"{self.bundle}: adapter `{self.adapter}` ({self.task}) on {self.rows:,} rows of {self.data}"
        columns = ("metric", "value", "95 % interval", *(("reference",) if other else ()))
        return Table(columns, rows, title, numbers="lrrr")

    def tables(self) -> Iterator[Table]:
        """Yield the table of the metrics, then all others that there are."""
        yield self.table()
        if self.classes:
            rows = [
                (one.label, f"{one.precision:.4f}", f"{one.recall:.4f}", f"{one.f1:.4f}", f"{one.support:,}")
                for one in self.classes
            ]
            yield Table(("class", "precision", "recall", "F1", "support"), rows, "classes", numbers="lrrrr")
        if self.confusion is not None:
            yield self._confusion()
        if self.calibration is not None:
            yield Table(
                ("probability", "answers", "mean probability", "right"),
                [
                    (f"{one.low:.1f} to {one.high:.1f}", f"{one.count:,}", f"{one.probability:.4f}", f"{one.right:.4f}")
                    for one in self.calibration.bins
                ],
                f"calibration: expected calibration error {self.calibration.error:.4f}",
                numbers="lrrr",
            )
        if self.slices:
            first = self.metrics[0]
            lines = [
                (one.value, f"{one.rows:,}", one.scores[first.name], one.scores[first.name].interval)
                for one in self.slices
            ]
            title = f"slices by `{self.sliced_by}`"
            yield Table(("value", "rows", first.words, "95 % interval"), lines, title, numbers="lrrr")
        if self.versus is not None and self.versus.parting:
            parting = self.versus.parting
            more = f", the first {_SHOWN} of them" if len(parting) > _SHOWN else ""
            yield Table(
                ("line", "text", "right", "bundle", "reference"),
                [
                    (row.line, _cut(row.text), *map(_cut, (row.right, row.answer, row.other)))
                    for row in parting[:_SHOWN]
                ],
                f"{len(parting):,} rows where the bundle and {self.versus.reference} part{more}",
                numbers="r",
            )

    def _confusion(self) -> Table:
        """Return the matrix; of many classes the most frequent confusions."""
        counts, labels = np.array(self.confusion), [one.label for one in self.classes]
        if len(labels) <= _MOST_CLASSES:
            rows = [(label, *row) for label, row in zip(labels, counts.tolist(), strict=True)]
            return Table(("right ↓  answered →", *labels), rows, "confusion", numbers="l" + "r" * len(labels))
        np.fill_diagonal(counts, 0)
        worst = np.argsort(-counts, axis=None, kind="stable")[:_MOST_CONFUSED]
        pairs = [(int(at) // len(labels), int(at) % len(labels)) for at in worst]
        lines = [(labels[one], labels[other], counts[one, other]) for one, other in pairs if counts[one, other]]
        return Table(("right", "answered", "rows"), lines, "most frequent confusions", numbers="llr")

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables())


def _cut(value: object) -> str:
    return one_line(value, _LONGEST)


@dataclass(frozen=True)
class Held:
    """Scores of a training record, and what the bundle gives on the same rows.

    Attributes:
        part: `test` or `validation`.
        scores: what the record says.
        found: what the bundle gives on the rows as training reads them, without repeated ones.
        low: the least that rounding explains, by metric.
        high: the most.
        uncertain: the lines of the rows whose answers rounding may change.
        passed: whether every score of the record lies in that range.
    """

    part: str
    scores: Mapping[str, float]
    found: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    uncertain: tuple[int, ...]
    passed: bool


def hold_record(
    training: Mapping[str, Any],
    sha256: str,
    columns: Mapping[str, str | None],
    asked: Asked,
    results: Results,
    allowed: float,
) -> tuple[Held | None, str | None]:
    """Compare the record with the results on a file, or return a note on why it cannot be held to them.

    What rounding explains is found by trying: results are moved by as much as the budget of the output allows, with
    random signs, and judged again; the range of the scores is taken twice as wide.

    Args:
        training: the adapter's record.
        sha256: that of the file.
        columns: that were read, by the names of the options.
        asked: all rows of the file.
        results: of the bundle.
        allowed: how far a result may be from that of the reference.
    """
    sources = training.get("data")
    known = {part: sources.get(part) for part in _PARTS} if isinstance(sources, Mapping) else {}
    files = {part: one for part, one in known.items() if isinstance(one, Mapping) and "sha256" in one}
    part = next((part for part, one in files.items() if one["sha256"] == sha256), None)
    scores = training.get(part) if part is not None else None
    if part is None or not isinstance(scores, Mapping):
        named = ", ".join(f"`{one.get('file')}` ({part})" for part, one in files.items())
        other = f"its scores were measured on {named}" if named else "it names no file that its scores were measured on"
        return None, f"the record of training cannot be held to these rows: {other}" if training else None
    settings = training.get("settings", {})
    others = [f"`{settings[name]}`" for name, column in columns.items() if settings.get(name, column) != column]
    if others:
        return None, f"the record of training cannot be held to these rows: it read the column {', '.join(others)}"
    rows = asked.different()
    if files[part].get("rows") not in (None, len(rows)):
        counts = f"{files[part]['rows']:,} rows of this very file, here {len(rows):,} are read"
        return None, f"the record of training cannot be held to these rows: it was measured on {counts}"
    asked, results = asked.only(rows, results)
    judged = judge(asked, results)
    found = _values(judged)
    recorded = {name: float(scores[name]) for name in found if isinstance(scores.get(name), int | float)}
    if not recorded:
        return None, "the record of training has none of these metrics"
    drawn, uncertain = [found], np.zeros(len(asked.rows), bool)
    for draw in range(_DRAWS):
        moved = judge(asked, _moved(results, allowed, np.random.default_rng(draw)))
        drawn.append(_values(moved))
        if not judged.numeric:
            uncertain |= [one != other for one, other in zip(judged.answers, moved.answers, strict=True)]
    low, high = {}, {}
    for name in recorded:
        values = [each[name] for each in drawn if not math.isnan(each[name])]
        low[name] = found[name] - 2 * (found[name] - min(values, default=math.nan)) - _SLACK
        high[name] = found[name] + 2 * (max(values, default=math.nan) - found[name]) + _SLACK
    return Held(
        part,
        recorded,
        {name: found[name] for name in recorded},
        low,
        high,
        tuple(row.line for row, may in zip(asked.rows, uncertain, strict=True) if may),
        all(low[name] <= value <= high[name] for name, value in recorded.items()),
    ), None


def _moved(results: Results, allowed: float, generator: np.random.Generator) -> Results:
    return [[result + allowed * generator.choice((-1.0, 1.0), np.shape(result)) for result in own] for own in results]


def _values(judged: Judged) -> dict[str, float]:
    measured = judged.measure(np.arange(judged.units))
    return {metric.name: float(value) for metric, value in zip(judged.metrics, measured, strict=True)}
