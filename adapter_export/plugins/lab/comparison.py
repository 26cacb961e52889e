"""Several contestants side by side: scores, tests of their differences, agreement, sizes and latency."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Annotated, Any

import numpy as np
import onnxruntime as ort
from scipy import stats

from adapter_export.bundle.latency import interleaved, quartiles
from adapter_export.format.records import SEMVER
from adapter_export.format.tabular.eval_data import EvalData
from adapter_export.graph.tasks.metrics import Floats, Judged, Metric, correlation
from adapter_export.onnx_backend.base.external import bytes_with_weights
from adapter_export.plugins.lab.contest import Contestant, Measured
from adapter_export.plugins.lab.eval_rows import DifferingRow, EvalRows, cut, shown_text
from adapter_export.plugins.lab.member_attention import Attention, attention, is_fusion
from adapter_export.plugins.lab.scores import Resampling, Score, percentiles, summarised
from adapter_export.plugins.lab.seen_rows import SeenRows
from adapter_export.reporting import SILENT, Reporter
from adapter_export.runtime.session import Session
from adapter_export.tables import Described, Table, number_of, size, verb_for

COMPARISON_VERSION = "1.0.0"
"""The version of the format of the document."""

MOST_PAIRED = 12
"""The most contestants that are compared in all pairs; beyond it, each is compared with the first one."""

_LEVEL = 0.05
_PERMUTATIONS = 9999
_SHOWN = 10
_OWN_COLUMN = 5

MCNEMAR, PERMUTATION, BOOTSTRAP = "exact McNemar", "paired permutation", "paired bootstrap"
_ASSUMED = {
    MCNEMAR: "a row that only one contestant answers right is equally likely to be either's (binomial, two-sided)",
    PERMUTATION: f"the two values of a row are exchangeable ({_PERMUTATIONS:,} exchanges, all of few rows, two-sided)",
    BOOTSTRAP: "the draws show how the difference varies (twice the share of draws beyond 0)",
}


@dataclass(frozen=True)
class CallTime:
    """The time of a call with one row on one thread: median and quartiles over rounds in which all take turns.

    Attributes:
        milliseconds: the median.
        low: the lower quartile.
        high: the upper quartile.
        ratio: the median of the time over that of the first contestant in the same round.
        ratio_low: the lower quartile of the ratio.
        ratio_high: the upper quartile of the ratio.
    """

    milliseconds: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class ContestantRecord:
    """A contestant, its scores and its costs.

    Attributes:
        name: its name in tables; no two contestants share one.
        source: the bundle, the adapter or the model, as the caller gave it.
        adapter: the name of the adapter.
        kind: of its graphs.
        precision: precision of the base.
        parameters: parameters of the adapter.
        adapter_bytes: size of the file that a client loads.
        graph_bytes: size of the graph with the base's weights and the neutral values of its slots.
        seen: the rows that the adapter has learnt from; null if its record names no data.
        latency: null if it was not measured.
        scores: by metric.
    """

    name: str
    source: str
    adapter: str
    kind: str
    precision: str
    parameters: int
    adapter_bytes: int
    graph_bytes: int
    seen: SeenRows | None = None
    latency: CallTime | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)

    @classmethod
    def of(cls, contestant: Contestant) -> ContestantRecord:
        """Return the record of a contestant, without latency and scores."""
        bundle, record = contestant.bundle, contestant.record
        sizes = {file.path: file.bytes for file in bundle.manifest.files}
        graph = bundle.home / bundle.manifest.graphs["slots"]
        return cls(
            contestant.name,
            contestant.source,
            contestant.adapter,
            record.kind,
            bundle.numerics.precision.name,
            record.parameters,
            sizes[record.onnx_adapter],
            bytes_with_weights(graph, bundle.slots_model),
        )


@dataclass(frozen=True)
class Difference:
    """A metric of two contestants on the same rows.

    Attributes:
        metric: its name.
        first: the first contestant.
        second: the second contestant.
        value: first − second; null where a score is not defined.
        low: the lower end of its interval of 95 %, by a paired bootstrap.
        high: the upper end.
        test: `exact McNemar`, `paired permutation` or `paired bootstrap`.
        only_first: rows that only the first answers right (McNemar test).
        only_second: rows that only the second answers right.
        p: probability of a difference at least this large under the null hypothesis.
        adjusted: `p` after Holm (1979) for all pairs of this metric; with two contestants `p` itself.
    """

    metric: str
    first: str
    second: str
    value: float | None
    low: float | None
    high: float | None
    test: str
    only_first: int | None
    only_second: int | None
    p: float | None
    adjusted: float | None = None


@dataclass(frozen=True)
class Agreement:
    """The agreement of two contestants.

    Attributes:
        first: the first contestant.
        second: the second contestant.
        value: share of rows with the same answer, or Pearson's correlation of numbers; null if undefined.
    """

    first: str
    second: str
    value: float | None


@dataclass(frozen=True)
class Setting:
    """The data and the options of a comparison.

    Attributes:
        task: the problem type.
        data: the name of the file.
        sha256: of its contents.
        resamples: bootstrap draws per interval.
        seed: random seed of draws and exchanges.
        rounds: rounds of timed calls.
        tokens: tokens of the timed text; null if none was timed.
    """

    task: str
    data: str
    sha256: str
    resamples: int
    seed: int
    rounds: int
    tokens: int | None


@dataclass(frozen=True)
class _Compared:
    """Contestants on the same rows.

    Attributes:
        setting: the data and the options.
        rows: number of answered rows.
        runtime: runtime that computed the answers.
        numeric: true if answers are numbers, whose agreement is a correlation.
        contestants: the contestants in the order of the call.
        differences: differences of all pairs and metrics; with many contestants, of each and the first.
        agreements: agreement of the same pairs.
        differing: the first rows with different answers; for numbers, the rows with the largest differences.
        differing_rows: number of such rows; for numbers, of all rows.
        fusions: attention of fusion layers to their members.
        notes: warnings, each a clause.
    """

    setting: Setting
    rows: int
    runtime: str
    numeric: bool
    contestants: tuple[ContestantRecord, ...]
    differences: tuple[Difference, ...]
    agreements: tuple[Agreement, ...]
    differing: tuple[DifferingRow, ...]
    differing_rows: int
    fusions: tuple[Attention, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonDocument(_Compared):
    """Contestants on the same rows, as `adapter-export compare --json` writes it; schema `comparison`.

    Attributes:
        version: the version of this format. A reader refuses another major version.
        metrics: names of the metrics, the primary one first.
    """

    version: Annotated[str, SEMVER]
    metrics: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Comparison(Described, _Compared):
    """Contestants on the same rows; `print` and notebooks show it.

    Attributes:
        metrics: the metrics, the primary one first.
    """

    metrics: tuple[Metric, ...]

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        names, metric = [contestant.name for contestant in self.contestants], self.metrics[0].name
        return {
            "contestants": names,
            "rows": self.rows,
            metric: [str(contestant.scores[metric]) for contestant in self.contestants],
        }

    @property
    def best(self) -> ContestantRecord | None:
        """The contestant with the best first metric, or `None` if it is undefined."""
        metric = self.metrics[0]
        known = [(contestant.scores[metric.name].value, contestant) for contestant in self.contestants]
        sign = 1 if metric.more_is_better else -1
        ranked = [(sign * value, contestant) for value, contestant in known if value is not None]
        return max(ranked, key=lambda pair: pair[0])[1] if ranked else None

    def remarks(self) -> Iterator[str]:
        """Yield sentences on the best contestant, the tests and their assumptions."""
        metric, best = self.metrics[0], self.best
        if best is not None:
            score = best.scores[metric.name].value
            first = [
                contestant.name for contestant in self.contestants if contestant.scores[metric.name].value == score
            ]
            yield f"best {metric.words}: {_listed(first)}, {best.scores[metric.name]}."
            against = {
                other: difference.adjusted
                for difference in self.differences
                for other in (difference.first, difference.second)
                if difference.metric == metric.name
                and best.name in (difference.first, difference.second)
                and other != best.name
            }
            below = [name for name, p in against.items() if p is not None and p < _LEVEL]
            alike = [name for name, p in against.items() if p is None or p >= _LEVEL]
            if below:
                yield f"significantly worse (p < {_LEVEL:g}): {_listed(below)}."
            if alike:
                yield f"not significantly different on these rows: {_listed(alike)}."
        count = len(self.contestants)
        if count > MOST_PAIRED:
            name = self.contestants[0].name
            yield f"with more than {MOST_PAIRED} contestants, each is compared only with the first, `{name}`."
        for test in dict.fromkeys(difference.test for difference in self.differences):
            names = dict.fromkeys(difference.metric for difference in self.differences if difference.test == test)
            words = ", ".join(metric.words for metric in self.metrics if metric.name in names)
            yield f"{words}: {test} test; assumes independent rows, and that {_ASSUMED[test]}."
        if count > 2:
            yield "p is adjusted for the number of pairs (Holm 1979)."
        if self.setting.resamples:
            resampling = Resampling(self.setting.resamples, self.setting.seed)
            described = resampling.description(self.setting.task, [metric.name for metric in self.metrics])
            yield f"95 % intervals: {described}, the same draws for all."
        if self.setting.rounds:
            tokens = "" if self.setting.tokens is None else f" of {self.setting.tokens} tokens"
            rounds = f"median and quartiles of {self.setting.rounds} rounds in turns"
            yield f"latency: one row{tokens}, one thread, {rounds}."

    def table(self) -> Table:
        """Return a line for each contestant: its scores."""
        columns = ["contestant"]
        for metric in self.metrics:
            columns += [metric.words, "95 % interval"]
        rows = [
            (contestant.name, *(cell for metric in self.metrics for cell in _cells(contestant.scores[metric.name])))
            for contestant in self.contestants
        ]
        contestants = f"{number_of(len(self.contestants), 'contestant')} ({self.setting.task})"
        title = f"{contestants} on {number_of(self.rows, 'row')} of {self.setting.data}"
        return Table(columns, rows, title, "l" + "r" * (len(columns) - 1))

    def sizes(self) -> Table:
        """Return the sizes of each contestant's file and graph."""
        rows = [
            (
                contestant.name,
                contestant.kind,
                contestant.precision,
                f"{contestant.parameters:,}",
                size(contestant.adapter_bytes),
                size(contestant.graph_bytes),
            )
            for contestant in self.contestants
        ]
        columns = ("contestant", "kind", "precision", "parameters", "adapter", "graph with base")
        return Table(columns, rows, "sizes", "lllrrr", ("kind", "graph with base"))

    def latencies(self) -> Table:
        """Return a line for each contestant that was timed."""
        rows = [
            (
                contestant.name,
                f"{time.milliseconds:.3g}",
                f"{time.low:.3g} to {time.high:.3g}",
                f"{time.ratio:.2f}",
                f"{time.ratio_low:.2f} to {time.ratio_high:.2f}",
            )
            for contestant in self.contestants
            if (time := contestant.latency) is not None
        ]
        columns = ("contestant", "ms", "quartiles", f"over {self.contestants[0].name}", "quartiles")
        return Table(columns, rows, "latency", "lrrrr")

    def tests(self, metrics: Iterable[Metric]) -> Table:
        """Return the difference of each pair and metric, with its significance test."""
        words = {metric.name: metric.words for metric in metrics}
        adjusted = len(self.contestants) > 2
        spare = ("only one right", "test")
        columns = ("metric", "first", "second", "first − second", "95 % interval", "only one right", "test", "p")
        rows = []
        for difference in self.differences:
            if difference.metric in words:
                right = (
                    "" if difference.only_first is None else f"{difference.only_first:,} : {difference.only_second:,}"
                )
                cells = [words[difference.metric], difference.first, difference.second, _signed(difference.value)]
                cells.append(
                    "–" if difference.low is None else f"{_signed(difference.low)} to {_signed(difference.high)}"
                )
                cells += [right, difference.test, _probability(difference.p)]
                rows.append(cells + ([_probability(difference.adjusted)] if adjusted else []))
        return Table((*columns, *(("p, Holm",) if adjusted else ())), rows, "differences", "lllrrrlrr", spare)

    def agreement(self) -> Table:
        """Return the agreements as a matrix; of many contestants as a list."""
        title = "correlation of answers" if self.numeric else "agreement: share of rows with the same answer"
        known = {frozenset((pair.first, pair.second)): pair.value for pair in self.agreements}
        names = [contestant.name for contestant in self.contestants]
        if len(names) > MOST_PAIRED:
            rows = [(pair.second, _share(pair.value)) for pair in self.agreements]
            return Table(("contestant", f"with `{names[0]}`"), rows, title, "lr")
        matrix = [
            (first, *(_share(1.0 if first == second else known[frozenset((first, second))]) for second in names))
            for first in names
        ]
        return Table(("", *names), matrix, title, "l" + "r" * len(names))

    def differing_table(self) -> Table:
        """Return the rows that are not answered alike."""
        names = [contestant.name for contestant in self.contestants]
        apart = len(names) <= _OWN_COLUMN
        rows = []
        for row in self.differing:
            answers = list(map(cut, row.answers)) if apart else [_grouped(names, row.answers)]
            rows.append((row.line, cut(row.text), cut(row.right), *answers))
        shown = f"{len(rows)} of {number_of(self.differing_rows, 'row')}"
        title = f"{shown}, those with the largest differences" if self.numeric else f"{shown} that differ"
        return Table(("line", "text", "right", *(names if apart else ["answers"])), rows, title, "r")

    def tables(self) -> Iterator[Table]:
        """Yield all tables; the tests are those of the first metric."""
        yield self.table()
        yield self.sizes()
        if self.contestants[0].latency is not None:
            yield self.latencies()
        yield self.tests(self.metrics[:1])
        yield self.agreement()
        for fusion in self.fusions:
            yield from fusion.tables()
        if self.differing:
            yield self.differing_table()

    def to_json(self) -> dict[str, Any]:
        """Return all of it in JSON's own types."""
        names = tuple(metric.name for metric in self.metrics)
        return asdict(ComparisonDocument(**{**vars(self), "version": COMPARISON_VERSION, "metrics": names}))

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self.tables()), "\n".join(self.remarks())])

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables())


def compare_measured(
    measured: Sequence[Measured],
    data: EvalData,
    resampling: Resampling,
    *,
    rounds: int,
    notes: Sequence[str] = (),
    reporter: Reporter = SILENT,
) -> Comparison:
    """Compare contestants that answered the same rows; calls are timed in `rounds` rounds.

    Raises:
        RequestError: ONNX Runtime cannot compute a call.
    """
    contestants, first = [entry.contestant for entry in measured], measured[0].rows
    notes = [*notes, *data.notes, *_repeated_rows(first)]
    fusions = list(_attentions(measured, reporter))
    records, tokens = [replace(ContestantRecord.of(entry.contestant), seen=entry.seen) for entry in measured], None
    if rounds:
        reporter.step(f"timing {number_of(len(contestants), 'contestant')}, {rounds} rounds")
        at = first.usual()
        tokens = first.tokens(at)
        records = _timed(records, _calls(measured, at), rounds)
    for entry in measured:
        notes += [f"`{entry.contestant.name}`: " + note for note in entry.notes()]
    reporter.step("drawing rows for the intervals")
    return comparison(
        Setting(first.task.type, data.path.name, data.sha256, resampling.count, resampling.seed, rounds, tokens),
        records,
        [entry.judged for entry in measured],
        [(row.line, shown_text(row)) for row in data.rows],
        f"onnxruntime {ort.__version__}",
        fusions=fusions,
        notes=notes,
    )


def _repeated_rows(rows: EvalRows) -> Iterator[str]:
    repeated = len(rows.rows) - len(rows.distinct())
    if repeated:
        repeats = f"{number_of(repeated, 'row')} {verb_for(repeated, 'repeat')} an earlier one"
        yield f"{repeats}, and the tests take rows as independent of each other"


def _attentions(measured: Sequence[Measured], reporter: Reporter) -> Iterator[Attention]:
    """Yield the attention of the fusions among the contestants to their members."""
    for entry in measured:
        contestant = entry.contestant
        if is_fusion(contestant.original):
            reporter.step(f"reading the attention weights of `{contestant.name}`")
            yield replace(
                attention(contestant.bundle, contestant.adapter, contestant.inputs(entry.rows)), adapter=contestant.name
            )


def _calls(measured: Sequence[Measured], at: int) -> Iterator[Callable[[], object]]:
    """Yield a call of each contestant with one row, in a session of one thread that a bundle's contestants share."""
    sessions: dict[int, Session] = {}
    for entry in measured:
        contestant = entry.contestant
        if id(contestant.bundle) not in sessions:
            sessions[id(contestant.bundle)] = contestant.bundle.bundle.session(threads=1)
        arrays = contestant.reader.arrays([entry.rows.read[at].rows[0]], contestant.adapter)
        yield partial(sessions[id(contestant.bundle)].run, arrays, contestant.adapter)


def _timed(
    records: Sequence[ContestantRecord], calls: Iterable[Callable[[], object]], rounds: int
) -> list[ContestantRecord]:
    """Return records with the times of calls, which take turns."""
    times = interleaved(list(calls), rounds)
    timed = []
    for record, seconds in zip(records, times.T, strict=True):
        low, middle, high = quartiles(1000 * seconds)
        ratio_low, ratio, ratio_high = quartiles(seconds / times[:, 0])
        timed.append(replace(record, latency=CallTime(middle, low, high, ratio, ratio_low, ratio_high)))
    return timed


def comparison(
    setting: Setting,
    contestants: Sequence[ContestantRecord],
    judged: Sequence[Judged],
    rows: Sequence[tuple[int, str]],
    runtime: str,
    *,
    fusions: Sequence[Attention] = (),
    notes: Sequence[str] = (),
) -> Comparison:
    """Compare judged answers; `rows` has the line and the text of each."""
    resampling = Resampling(setting.resamples, setting.seed)
    drawn = [resampling.draws(judgement) for judgement in judged]
    scored = [
        replace(contestant, scores=summarised(judgement, draws))
        for contestant, judgement, draws in zip(contestants, judged, drawn, strict=True)
    ]
    names, metrics = [contestant.name for contestant in contestants], judged[0].metrics
    pairs = (
        list(combinations(range(len(names)), 2))
        if len(names) <= MOST_PAIRED
        else [(0, at) for at in range(1, len(names))]
    )
    differences = []
    for at, metric in enumerate(metrics):
        of_metric = []
        for first, second in pairs:
            both = scored[first].scores[metric.name].value, scored[second].scores[metric.name].value
            sides = judged[first].each.get(metric.name), judged[second].each.get(metric.name)
            facts = _difference(both, sides, drawn[first][:, at] - drawn[second][:, at], setting.seed)
            of_metric.append(Difference(metric.name, names[first], names[second], **facts))
        adjusted = holm([difference.p for difference in of_metric])
        differences += [replace(difference, adjusted=p) for difference, p in zip(of_metric, adjusted, strict=True)]
    agreements = [
        Agreement(names[first], names[second], _agreement(judged[first], judged[second])) for first, second in pairs
    ]
    differing, count = _differing(judged, rows)
    return Comparison(
        setting,
        len(rows),
        runtime,
        judged[0].numeric,
        tuple(scored),
        tuple(differences),
        tuple(agreements),
        differing,
        count,
        tuple(fusions),
        tuple(dict.fromkeys([*notes, *(note for judgement in judged for note in judgement.notes)])),
        metrics,
    )


def _difference(
    scores: tuple[float | None, float | None], each: tuple[Floats | None, Floats | None], drawn: Floats, seed: int
) -> dict[str, Any]:
    """Return the difference of two scores, its interval, and the test that the metric allows."""
    known = drawn[~np.isnan(drawn)]
    low, high = (None, None) if not len(known) else (float(end) for end in percentiles(known[:, None])[:, 0])
    facts: dict[str, Any] = {"low": low, "high": high, "only_first": None, "only_second": None}
    facts["value"] = None if scores[0] is None or scores[1] is None else scores[0] - scores[1]
    first, second = each
    if first is not None and second is not None and np.isin((first, second), (0, 1)).all():
        only = int((first > second).sum()), int((second > first).sum())
        p = float(stats.binomtest(only[0], sum(only)).pvalue) if any(only) else 1.0
        return facts | {"test": MCNEMAR, "only_first": only[0], "only_second": only[1], "p": p}
    if first is not None and second is not None:
        return facts | {"test": PERMUTATION, "p": _exchanged(first, second, seed)}
    beyond = min((known <= 0).sum(), (known >= 0).sum())
    # with 1 added to both: no number of draws shows that p is 0
    p = min(1.0, 2 * float(beyond + 1) / (len(known) + 1))
    return facts | {"test": BOOTSTRAP, "p": p if len(known) else None}


def _exchanged(first: Floats, second: Floats, seed: int) -> float:
    """Return p of the mean difference under random exchanges of the two values of a row."""
    apart = first != second  # the others change nothing, whichever way round they stand
    if not apart.any():
        return 1.0
    test = stats.permutation_test(
        (first[apart] - second[apart],),
        lambda values, axis: values.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        batch=max(1, 2**22 // int(apart.sum())),
        random_state=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for their number: max over those up to each of (how many are left)·p (Holm 1979)."""
    known = sorted((p, at) for at, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    most = 0.0
    for place, (p, at) in enumerate(known):
        most = max(most, min(1.0, (len(known) - place) * p))
        adjusted[at] = most
    return adjusted


def _agreement(ours: Judged, others: Judged) -> float | None:
    if not ours.numeric:
        return float(np.mean([mine == theirs for mine, theirs in zip(ours.answers, others.answers, strict=True)]))
    first, second = (np.array(side.answers, np.float64).reshape(len(side.answers), -1) for side in (ours, others))
    if np.array_equal(first, second):
        return 1.0
    mean = float(np.mean([correlation("pearson", *pair) for pair in zip(first.T, second.T, strict=True)]))
    return mean if math.isfinite(mean) else None


def _differing(judged: Sequence[Judged], rows: Sequence[tuple[int, str]]) -> tuple[tuple[DifferingRow, ...], int]:
    """Return the rows to show and their number, those with most disagreement first; numbers by their range."""
    answers = list(zip(*(judgement.answers for judgement in judged), strict=True))
    if judged[0].numeric:
        spread = np.array(answers, np.float64).reshape(len(answers), len(judged), -1)
        order = np.argsort(-np.ptp(spread, 1).max(-1), kind="stable")
        count = len(answers)
    else:
        apart = [
            at for at, row_answers in enumerate(answers) if any(answer != row_answers[0] for answer in row_answers)
        ]
        common = [Counter(map(str, answers[at])).most_common(1)[0][1] for at in apart]
        order, count = np.array(apart, int)[np.argsort(common, kind="stable")], len(apart)
    shown = (DifferingRow(rows[at][0], rows[at][1], judged[0].truths[at], answers[at]) for at in order[:_SHOWN])
    return tuple(shown), count


def _cells(score: Score) -> tuple[str, str]:
    return str(score), score.interval


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _probability(p: float | None) -> str:
    return "–" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _grouped(names: Sequence[str], answers: Sequence[object]) -> str:
    """Group contestants by their answer, the most frequent answer first."""
    groups: dict[str, list[str]] = {}
    for name, answer in zip(names, answers, strict=True):
        groups.setdefault(cut(answer), []).append(name)
    ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
    return "; ".join(f"{answer}: {_listed(members)}" for answer, members in ranked)


def _listed(names: Sequence[str]) -> str:
    shown = [f"`{name}`" for name in names[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
