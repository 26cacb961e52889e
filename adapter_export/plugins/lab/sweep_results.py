"""Results of a sweep: the scores of each setting over its seeds, and its costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any, Literal, get_args

from adapter_export.bundle.latency import Latency
from adapter_export.graph.tasks.metrics import Metric
from adapter_export.tables import Described, Table, html_of, number_of

Cost = Literal["parameters", "latency"]


@dataclass(frozen=True)
class Range:
    """A closed range of numbers; of integers if both ends are."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Setting:
    """A setting that a sweep tries.

    Attributes:
        kind: the kind of adapter, by name.
        bottleneck: its width, the rank of LoRA; `None` for a kind without one.
        placement: sublayers, or linear layers for LoRA and IA3, joined by `+`; `None` for the kind's default.
        learning_rate: the peak learning rate.
    """

    kind: str
    bottleneck: int | None
    placement: str | None
    learning_rate: float

    @property
    def name(self) -> str:
        """The beginning of the names of its adapters."""
        parts = [self.kind, self.bottleneck, self.placement and self.placement.replace("+", "_"), self.learning_rate]
        return "-".join(str(part) for part in parts if part is not None)


@dataclass(frozen=True)
class Space:
    """The settings that can be tried.

    Attributes:
        kinds: names of kinds, true for those with a width.
        bottlenecks: the widths.
        placements: placements to try; empty for each kind's default.
        learning_rates: the learning rates.
    """

    kinds: Mapping[str, bool]
    bottlenecks: tuple[int, ...] | Range
    placements: tuple[str, ...]
    learning_rates: tuple[float, ...] | Range

    def grid(self) -> Iterator[Setting]:
        """Yield every setting of lists; of a range its two ends."""
        rates = _listed(self.learning_rates)
        for kind, has_width in self.kinds.items():
            widths: Sequence[Any] = _listed(self.bottlenecks) if has_width else (None,)
            for width, placement, rate in itertools.product(widths, self.placements or (None,), rates):
                yield Setting(kind, width, placement, rate)


def _listed(values: tuple[Any, ...] | Range) -> tuple[Any, ...]:
    return (values.low, values.high) if isinstance(values, Range) else values


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        seed: its seed.
        adapter: the name of its folder, in `runs` of the sweep.
        score: score on the validation rows; null if the training failed.
        test: the same metric on the test data; null without test data.
        error: error of a failed training.
    """

    seed: int
    adapter: str
    score: float | None = None
    test: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Trial:
    """A setting, trained once for each seed.

    Attributes:
        setting: the tried setting.
        runs: its trainings.
        parameters: stored numbers of an adapter.
        mean: mean score; null if a training failed.
        spread: standard deviation of the scores; null for a single one.
        test: mean of the same metric on the test data, which is not used for selection.
        test_spread: standard deviation on the test data.
        latency: latency of a call relative to the base; null if not measured.
        front: costs for which the trial is Pareto optimal.
    """

    setting: Setting
    runs: tuple[Run, ...]
    parameters: int
    latency: Latency | None = None
    front: tuple[Cost, ...] = ()
    mean: float | None = None
    spread: float | None = None
    test: float | None = None
    test_spread: float | None = None

    @classmethod
    def of(cls, setting: Setting, runs: Sequence[Run], parameters: int) -> Trial:
        """Return the trial with the means of its trainings, if none failed."""
        scores, tests = (
            [value for value in each if value is not None]
            for each in zip(*((r.score, r.test) for r in runs), strict=True)
        )
        whole, tested = len(scores) == len(runs), len(tests) == len(runs)
        return cls(
            setting,
            tuple(runs),
            parameters,
            mean=fmean(scores) if whole else None,
            spread=stdev(scores) if whole and len(scores) > 1 else None,
            test=fmean(tests) if tested else None,
            test_spread=stdev(tests) if tested and len(tests) > 1 else None,
        )

    def cost(self, cost: Cost) -> float | None:
        """Return the cost; `None` if unknown."""
        if cost == "parameters":
            return self.parameters
        return None if self.latency is None else self.latency.ratio


@dataclass(frozen=True, repr=False)
class Sweep(Described):
    """The result of a sweep; `print` and notebooks show it.

    Attributes:
        data: the name of the training file.
        metric: the metric of the scores, such as `accuracy` or `loss`.
        words: its name for people.
        more_is_better: true if more of it is better.
        seeds: of each trial.
        trials: in the order in which they were tried.
        best: the trial with the best mean on the validation rows; of two alike the smaller one.
        adapter: the folder of its training that did best there.
    """

    data: str
    metric: str
    words: str
    more_is_better: bool
    seeds: tuple[int, ...]
    trials: tuple[Trial, ...]
    best: Trial
    adapter: str

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        facts: dict[str, object] = {"data": self.data, "trials": len(self.trials), "seeds": len(self.seeds)}
        return {**facts, "best": self.adapter, self.metric: self.best.mean}

    @classmethod
    def of(cls, data: str, metric: Metric, seeds: Sequence[int], trials: Sequence[Trial]) -> Sweep:
        """Mark the Pareto fronts and choose the best; at least one trial must have a mean."""
        sign = 1 if metric.more_is_better else -1

        def better(trial: Trial) -> float:
            return -math.inf if trial.mean is None else sign * trial.mean

        fronts: dict[Cost, list[Trial]] = {}
        for cost in get_args(Cost):
            front = fronts[cost] = []
            priced = [(price, -better(trial), trial) for trial in trials if (price := trial.cost(cost)) is not None]
            for _, _, trial in sorted(priced, key=lambda each: each[:2]):  # the cheapest first, each dearer one better
                if trial.mean is not None and (not front or better(trial) > better(front[-1])):
                    front.append(trial)
        marked = tuple(
            replace(trial, front=tuple(cost for cost, front in fronts.items() if trial in front)) for trial in trials
        )
        best = max(marked, key=lambda trial: (better(trial), -trial.parameters))
        chosen = max(best.runs, key=lambda run: sign * (run.score or 0.0))
        whose = (metric.name, metric.words, metric.more_is_better, tuple(seeds))
        return cls(data, *whose, marked, best, chosen.adapter)

    def table(self) -> Table:
        """Return a row for each trial: means and standard deviations over the seeds, `*` for the best one."""
        place = any(trial.setting.placement for trial in self.trials)
        tested = any(trial.test is not None for trial in self.trials)
        timed = any(trial.latency is not None for trial in self.trials)
        columns = ["kind", "width", *(["placement"] if place else []), "learning rate", self.words]
        columns += [*(["test"] if tested else []), "parameters", *(["latency"] if timed else []), "front"]
        rows = []
        for trial in self.trials:
            setting = trial.setting
            row = [setting.kind, f"{setting.bottleneck or '–'}", *([setting.placement or "–"] if place else [])]
            score = "failed" if trial.mean is None else _with_spread(trial.mean, trial.spread)
            row += [f"{setting.learning_rate:g}", f"{score} *" if trial is self.best else f"{score}  "]
            row += [_with_spread(trial.test, trial.test_spread)] if tested else []
            row += [f"{trial.parameters:,}", *([str(trial.latency or "–")] if timed else []), ", ".join(trial.front)]
            rows.append(row)
        numbers = "".join("l" if name in ("kind", "placement", "front") else "r" for name in columns)
        return Table(columns, rows, numbers=numbers)

    def summary(self) -> str:
        """Return a sentence on the best trial."""
        scores = f"{self.words} {_with_spread(self.best.mean, self.best.spread)}"
        many = f"the mean of {number_of(len(self.seeds), 'seed')}" if len(self.seeds) > 1 else "one seed"
        best = f"best on the validation rows: `{self.best.setting.name}`, {scores}, {many}"
        return f"{best}; its best adapter is `{self.adapter}`"

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.summary()}"

    def _repr_html_(self) -> str:
        return html_of(self.table(), self.summary())


def _with_spread(mean: float | None, spread: float | None) -> str:
    return "–" if mean is None else f"{mean:.4f}" if spread is None else f"{mean:.4f} ± {spread:.4f}"
