"""One contestant in depth: scores with intervals, errors by class and slice, calibration, gates, a reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.errors import MissedGateError, TrainingRowsError, UsageError
from adapter_export.format.adapter_files import GRAPH_FILE
from adapter_export.format.tabular.eval_data import EvalData
from adapter_export.graph.tasks import CAUSAL_LM, Task
from adapter_export.graph.tasks.asked import BASE
from adapter_export.graph.tasks.metrics import TOKENS, WRITINGS, Decisions, Judged, Majority, Metric, metrics_of
from adapter_export.plugins.lab.baselines import Baseline, baselines_of, notes_on, recorded_baseline
from adapter_export.plugins.lab.contest import Measured
from adapter_export.plugins.lab.eval_rows import DifferingRow, cut, shown_text
from adapter_export.plugins.lab.language import MeasuredTexts
from adapter_export.plugins.lab.record_check import RecordCheck, compare_with_training_record
from adapter_export.plugins.lab.scores import NO_INTERVALS, Resampling, Score, score
from adapter_export.plugins.lab.seen_rows import SeenRows
from adapter_export.reporting import SILENT, Reporter
from adapter_export.tables import Described, Table, number_of
from adapter_export.words import argument, quoted

_BINS = 10
_MOST_SLICES = 50
_MOST_CLASSES = 12
_MOST_CONFUSED = 15
_SHOWN = 20


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one class, and the number of rows with this label (support)."""

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
    """Return counts by true class (row) and predicted class (column), or `None` for sets of labels."""
    if decisions.right.ndim != 1:
        return None
    counts = sk.confusion_matrix(decisions.right, decisions.answered, labels=range(len(decisions.classes)))
    return tuple(tuple(row) for row in counts.tolist())


@dataclass(frozen=True)
class Bin:
    """Decisions with a probability in (low, high], their mean probability, and the fraction of correct ones."""

    low: float
    high: float
    count: int
    probability: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """Calibration of probabilities in ten bins; empty bins are left out.

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
    occupied = np.flatnonzero(counts)
    bins = tuple(
        Bin(float(edges[at]), float(edges[at + 1]), int(counts[at]), float(mean), float(share))
        for at, mean, share in zip(occupied, means, shares, strict=True)
    )
    error = sum(part.count * abs(part.right - part.probability) for part in bins) / len(right)
    return Calibration(error, bins)


@dataclass(frozen=True)
class Slice:
    """The rows with one value in the column of the slices."""

    value: str
    rows: int
    scores: Mapping[str, Score]


def slice_by(values: Sequence[str], judged: Judged, resampling: Resampling) -> list[Slice]:
    """Return the scores of the rows of each value, the most frequent first; the first metric has an interval."""
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if judged.unit[row] >= 0:
            rows.setdefault(value, []).append(row)
    slices = []
    for value, members in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0])):
        units = np.unique(judged.unit[members])
        whole = score(judged, NO_INTERVALS, units)
        first = score(_first_metric(judged), resampling, units)
        slices.append(Slice(value, len(members), {**whole, **first}))
    return slices


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
            what = "is not a metric of this task"
            raise UsageError(what, where=argument("gate"), found=f"`{name}`", expected=f"one of {names}")
        if not metric.least <= bound <= metric.most:
            expected = f"{metric.least:g} to {metric.most:g}"
            where = argument("gate") + f", `{name}`"
            raise UsageError("the metric cannot have this value", where=where, found=bound, expected=expected)


def apply_gates(gates: Mapping[str, float], metrics: Sequence[Metric], scores: Mapping[str, Score]) -> tuple[Gate, ...]:
    """Compare scores with their bounds; an undefined score misses its bound."""
    more_is_better = {metric.name: metric.more_is_better for metric in metrics}

    def passes(name: str, bound: float) -> bool:
        value = scores[name].value
        return value is not None and (value >= bound if more_is_better[name] else value <= bound)

    return tuple(Gate(name, bound, scores[name].value, passes(name, bound)) for name, bound in gates.items())


@dataclass(frozen=True)
class Versus:
    """Answers of the reference to the rows.

    Attributes:
        reference: the reference, such as `torch 2.13.0 float32`.
        scores: its scores, without intervals.
        differing: the rows whose answers differ; of numbers those that differ by more than `allowed`.
        largest: the largest difference of a result (a logit, a number, an element of a vector).
        allowed: the difference that rounding explains.
    """

    reference: str
    scores: Mapping[str, Score]
    differing: tuple[DifferingRow, ...]
    largest: float
    allowed: float


def versus(ours: Measured, reference: Measured, allowed: float) -> Versus:
    """Compare answers with those of the reference; results may differ by `allowed`."""
    rows, first, second = ours.rows.rows, ours.judged, reference.judged
    distances = np.array(
        [
            max(float(np.abs(result - expected).max(initial=0)) for result, expected in zip(*pair, strict=True))
            for pair in zip(ours.results, reference.results, strict=True)
        ]
    ).reshape(-1, len(rows))  # pairs whose vectors are compared have two texts for each row
    apart = [
        distances[:, at].max() > allowed if first.numeric else first.answers[at] != second.answers[at]
        for at in range(len(rows))
    ]
    return Versus(
        reference.contestant.name,
        score(second, NO_INTERVALS),
        tuple(
            DifferingRow(row.line, shown_text(row), first.truths[at], (first.answers[at], second.answers[at]))
            for at, row in enumerate(rows)
            if apart[at]
        ),
        float(distances.max()),
        allowed,
    )


def metrics_of_rows(data: EvalData, task: Task | None) -> tuple[Metric, ...]:
    """Return the metrics of rows; without a task those of a language model."""
    if task is None:
        return TOKENS if data.rows[0].pair is None else WRITINGS
    return metrics_of(data.problem, task.labels, compared=data.compared)


def check_options(data: EvalData, metrics: Sequence[Metric], gates: Mapping[str, float]) -> None:
    """Refuse gates and slices that do not fit the data, before anything is computed.

    Raises:
        UsageError: a gate names another metric, or a column has too many values to slice by.
    """
    check_gates(gates, metrics)
    values = set() if data.slices is None else set(data.values(data.slices))
    if len(values) > _MOST_SLICES:
        raise UsageError(
            "the column has too many values to slice by",
            where=argument("slices"),
            found=number_of(len(values), "different value"),
            expected=f"at most {_MOST_SLICES}",
        )


def evaluation(
    measured: Sequence[Measured],
    data: EvalData,
    resampling: Resampling,
    gates: Mapping[str, float],
    *,
    training: EvalData | None = None,
    allow_training_rows: bool = False,
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Report the scores of the first contestant, its baselines, and the rows that a second one answers differently."""
    entry, *others = measured
    contestant, judged = entry.contestant, entry.judged
    bundle, record, scores = contestant.bundle, contestant.record, score(judged, resampling)
    allowed = record.golden.absolute[str(record.output)]
    check, note = compare_with_training_record(contestant.original.training, data, entry, allowed)
    majority = None if judged.decisions is None else judged.decisions.majority
    baselines = list(baselines_of(entry, data, training, resampling, reporter))
    if check is not None and not baselines:
        first = judged.metrics[0].name
        recorded = recorded_baseline(contestant.original.training, check.part, first, scores[first])
        baselines += [] if recorded is None else [recorded]
    notes = [*data.notes, *entry.notes(), *judged.notes, *([] if note is None else [note])]
    notes += notes_on(baselines, majority, judged, scores)
    source = f"{record.source}/{GRAPH_FILE}"
    return Evaluation(
        bundle=str(bundle.folder),
        adapter=contestant.adapter,
        digest=bundle.digest,
        source=next(file.sha256 for file in bundle.manifest.files if file.path == source),
        task=entry.rows.task.type,
        data=data.path.name,
        sha256=data.sha256,
        rows=len(data.rows),
        runtime=f"onnxruntime {ort.__version__}",
        resamples=resampling.count,
        seed=resampling.seed,
        metrics=judged.metrics,
        scores=scores,
        majority=majority,
        baselines=tuple(baselines),
        classes=() if judged.decisions is None else class_scores(judged.decisions),
        confusion=None if judged.decisions is None else confusion(judged.decisions),
        calibration=calibrate(judged),
        sliced_by=data.slices,
        slices=() if data.slices is None else tuple(slice_by(data.values(data.slices), judged, resampling)),
        versus=versus(entry, others[0], allowed) if others else None,
        training_record=check,
        gates=apply_gates(gates, judged.metrics, scores),
        seen=entry.seen,
        allow_training_rows=allow_training_rows,
        notes=tuple(notes),
    )


def evaluation_of_texts(
    bundle: OpenedBundle,
    measured: MeasuredTexts,
    data: EvalData,
    resampling: Resampling,
    gates: Mapping[str, float],
    *,
    allow_training_rows: bool = False,
) -> Evaluation:
    """Report the scores of a language model on texts, or on prompts and answers."""
    judged, manifest = measured.judged, bundle.manifest
    scores = score(judged, resampling)
    file = manifest.graphs["slots"]
    if measured.adapter is not None:
        file = f"{bundle.record(measured.adapter).source}/{GRAPH_FILE}"
    return Evaluation(
        bundle=str(bundle.folder),
        adapter=BASE if measured.adapter is None else measured.adapter,
        digest=bundle.digest,
        source=next(record.sha256 for record in manifest.files if record.path == file),
        task=CAUSAL_LM,
        data=data.path.name,
        sha256=data.sha256,
        rows=len(data.rows),
        runtime=f"onnxruntime {ort.__version__}",
        resamples=resampling.count,
        seed=resampling.seed,
        metrics=judged.metrics,
        scores=scores,
        majority=None,
        baselines=(),
        classes=(),
        confusion=None,
        calibration=None,
        sliced_by=data.slices,
        slices=() if data.slices is None else tuple(slice_by(data.values(data.slices), judged, resampling)),
        versus=None,
        training_record=None,
        gates=apply_gates(gates, judged.metrics, scores),
        seen=measured.seen,
        allow_training_rows=allow_training_rows,
        notes=(*data.notes, *measured.notes),
    )


@dataclass(frozen=True, repr=False)
class Evaluation(Described):
    """Scores of an adapter of a bundle on the rows of a file.

    Attributes:
        bundle: its path.
        adapter: the name of the adapter.
        digest: the sha256 of the manifest of the bundle.
        source: the sha256 of the adapter's `adapter_graph.json`; of the base, of the graph with slots.
        task: its problem type.
        data: the name of the file.
        sha256: of its contents.
        rows: number of answered rows.
        runtime: runtime that computed the answers, such as `onnxruntime 1.32.0`.
        resamples: bootstrap draws per interval.
        seed: random seed of the draws.
        metrics: the metrics, the primary one first.
        scores: value and interval of each metric.
        majority: the scores of always answering the most frequent label; `None` if answers are not classes.
        baselines: scores without the adapter: of the base head, the frozen base, or a logistic regression on it.
        classes: precision, recall and F1 of each class; empty if answers are not classes.
        confusion: counts by true class (row) and predicted class (column); `None` if answers are not classes.
        calibration: the calibration of the probabilities; `None` if answers have none.
        sliced_by: column of the slices; `None` without slices.
        slices: scores for each value of that column.
        versus: answers of the reference to the same rows; `None` without a reference.
        training_record: comparison with the scores that training recorded for the same file; `None` without any.
        gates: the bounds and their results.
        seen: training rows among the rows; `None` if the training record names no data.
        allow_training_rows: true if gates may pass on training rows.
        notes: warnings, each a clause.
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
    majority: Majority | None
    baselines: tuple[Baseline, ...]
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    calibration: Calibration | None
    sliced_by: str | None
    slices: tuple[Slice, ...]
    versus: Versus | None
    training_record: RecordCheck | None
    gates: tuple[Gate, ...]
    seen: SeenRows | None
    allow_training_rows: bool
    notes: tuple[str, ...]

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        facts: dict[str, object] = {"bundle": self.bundle, "adapter": self.adapter, "data": self.data}
        return {**facts, "rows": self.rows, **dict(list(self.scores.items())[:2])}

    def remarks(self) -> Iterator[str]:
        """Yield sentences about intervals, the reference and the training record."""
        resampling = Resampling(self.resamples, self.seed)
        if self.majority is not None:
            yield f"majority: scores of always answering `{self.majority.label}`."
        for baseline in self.baselines:
            yield f"{baseline.name}: {baseline.meaning}."
        yield (
            f"95 % intervals: {resampling.description(self.task, self.scores)}." if self.resamples else "no intervals."
        )
        if self.versus is not None:
            count = len(self.versus.differing)
            alike = (
                f"differ in {count:,} of {number_of(self.rows, 'row')}"
                if count
                else f"answer all {number_of(self.rows, 'row')} alike"
            )
            largest = f"largest difference of a result {self.versus.largest:.1e} (rounding: {self.versus.allowed:.1e})"
            yield f"the bundle and {self.versus.reference} {alike}; {largest}."
        if self.training_record is not None:
            yield self.training_record.remark()
        for gate in self.gates:
            if gate.passed:
                yield f"gate passed: `{gate.metric}` {gate.value:.4f}, bound {gate.bound:g}."

    @property
    def passed(self) -> bool:
        """True if every gate passes on rows that are new to the adapter, and the scores match its training record."""
        return not any(self.faults())

    @property
    def exit_code(self) -> int:
        """The exit code of `evaluate`: that of the first fault, or 0."""
        return next((fault.exit_code for fault in self.faults()), 0)

    def raise_for_failure(self) -> None:
        """Raise the first of `faults()`.

        Raises:
            TrainingRowsError: gates were measured on training rows.
            MissedGateError: a gate is missed, or the scores contradict the training record.
        """
        for fault in self.faults():
            raise fault

    def faults(self) -> Iterator[TrainingRowsError | MissedGateError]:
        """Yield an error for gates on training rows, for each missed gate, and for each contradicted recorded score."""
        more_is_better = {metric.name: metric.more_is_better for metric in self.metrics}
        where = f"adapter `{self.adapter}` on {self.data}"
        if self.gates and self.seen is not None and self.seen.is_training and not self.allow_training_rows:
            yield self.seen.fault(where)
        for gate in self.gates:
            if not gate.passed:
                bound = f"at {'least' if more_is_better[gate.metric] else 'most'} {gate.bound:g}"
                value = "no value" if gate.value is None else f"{gate.value:.4f}"
                yield MissedGateError(f"`{gate.metric}` misses its gate", where=where, found=value, expected=bound)
        if self.training_record is not None:
            yield from self.training_record.faults(where)

    def to_json(self) -> dict[str, Any]:
        """Return all of it in JSON's own types."""
        document = asdict(self)
        document["metrics"] = [metric.name for metric in self.metrics]
        return {"passed": self.passed, **document}

    def table(self) -> Table:
        """Return a line for each metric."""
        other = {} if self.versus is None else self.versus.scores
        always = None if self.majority is None else self.majority.scores
        rows = [
            (metric.words, self.scores[metric.name], self.scores[metric.name].interval)
            + (() if always is None else (_cell(always, metric.name),))
            + tuple(_cell(baseline.scores, metric.name) for baseline in self.baselines)
            + ((other[metric.name],) if other else ())
            for metric in self.metrics
        ]
        title = f"{self.bundle}: adapter `{self.adapter}` ({self.task}) on {number_of(self.rows, 'row')} of {self.data}"
        further = (
            *(() if always is None else ("majority",)),
            *(baseline.name for baseline in self.baselines),
            *(("reference",) if other else ()),
        )
        return Table(
            ("metric", "value", "95 % interval", *further), rows, title, numbers="l" + "r" * (2 + len(further))
        )

    def tables(self) -> Iterator[Table]:
        """Yield the table of the metrics, then all others that there are."""
        yield self.table()
        if self.classes:
            rows = [
                (
                    scores.label,
                    f"{scores.precision:.4f}",
                    f"{scores.recall:.4f}",
                    f"{scores.f1:.4f}",
                    f"{scores.support:,}",
                )
                for scores in self.classes
            ]
            yield Table(("class", "precision", "recall", "F1", "support"), rows, "classes", numbers="lrrrr")
        if self.confusion is not None:
            yield self._confusion()
        if self.calibration is not None:
            yield Table(
                ("probability", "answers", "mean probability", "right"),
                [
                    (
                        f"{part.low:.1f} to {part.high:.1f}",
                        f"{part.count:,}",
                        f"{part.probability:.4f}",
                        f"{part.right:.4f}",
                    )
                    for part in self.calibration.bins
                ],
                f"calibration: expected calibration error {self.calibration.error:.4f}",
                numbers="lrrr",
            )
        if self.slices:
            first = self.metrics[0]
            lines = [
                (part.value, f"{part.rows:,}", part.scores[first.name], part.scores[first.name].interval)
                for part in self.slices
            ]
            title = f"slices by `{self.sliced_by}`"
            yield Table(("value", "rows", first.words, "95 % interval"), lines, title, numbers="lrrr")
        if self.versus is not None and self.versus.differing:
            differing = self.versus.differing
            more = f", the first {_SHOWN} of them" if len(differing) > _SHOWN else ""
            yield Table(
                ("line", "text", "right", "bundle", "reference"),
                [(row.line, *map(cut, (row.text, row.right, *row.answers))) for row in differing[:_SHOWN]],
                f"{number_of(len(differing), 'row')} where the bundle and {self.versus.reference} differ{more}",
                numbers="r",
            )

    def _confusion(self) -> Table:
        """Return the matrix; of many classes the most frequent confusions."""
        counts, labels = np.array(self.confusion), [scores.label for scores in self.classes]
        if len(labels) <= _MOST_CLASSES:
            rows = [(label, *row) for label, row in zip(labels, counts.tolist(), strict=True)]
            return Table(("right/answered", *labels), rows, "confusion", numbers="l" + "r" * len(labels))
        np.fill_diagonal(counts, 0)
        worst = np.argsort(-counts, axis=None, kind="stable")[:_MOST_CONFUSED]
        pairs = [(int(at) // len(labels), int(at) % len(labels)) for at in worst]
        lines = [
            (labels[right], labels[answered], counts[right, answered])
            for right, answered in pairs
            if counts[right, answered]
        ]
        return Table(("right", "answered", "rows"), lines, "most frequent confusions", numbers="llr")

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables())


def _cell(scores: Mapping[str, float], metric: str) -> str:
    return f"{scores[metric]:.4f}" if metric in scores else ""
