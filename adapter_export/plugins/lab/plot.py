"""Charts of results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adapter_export.graph.tasks.metrics import Metric
from adapter_export.plugins.lab.adapter_costs import Choice, Plan
from adapter_export.plugins.lab.layer_drop import Drop
from adapter_export.plugins.lab.sweep_results import Cost, Sweep, Trial
from adapter_export.safe_io.output import Output
from adapter_export.tables import number_of


def draw_plan(plan: Plan, path: Path, *, force: bool = False) -> None:
    """Draw the cost of each kind over its bottleneck widths.

    Raises:
        OutputExistsError, WriteError: the file cannot be written.
    """
    figure = _figure(8, 3.2)
    shares: Mapping[str, Callable[[Choice], float | None]] = {
        "parameters, % of the base": lambda choice: 100 * choice.parameter_share,
        "multiply-accumulates, % of the base": lambda choice: (
            None if choice.work_share is None else 100 * choice.work_share
        ),
        "latency over the base": lambda choice: None if choice.latency is None else choice.latency.ratio,
    }
    drawn = {title: of for title, of in shares.items() if any(of(choice) is not None for choice in plan.choices)}
    kinds = dict.fromkeys(choice.kind for choice in plan.choices)
    for axes, (title, of) in zip(np.atleast_1d(figure.subplots(1, len(drawn))), drawn.items(), strict=True):
        for kind in kinds:
            points = [(choice.bottleneck or 0, of(choice)) for choice in plan.choices if choice.kind == kind]
            known = [(bottleneck, value) for bottleneck, value in points if value is not None]
            axes.plot(*zip(*known, strict=True), "o-", label=kind)
        axes.set_xscale("symlog", base=2)
        axes.set_xlabel("bottleneck")
        axes.set_ylabel(title)
    axes.legend(frameon=False)
    _save(figure, path, force=force)


def draw_sweep(sweep: Sweep, path: Path, *, force: bool = False) -> None:
    """Draw the scores over their costs: means with standard deviations, the Pareto fronts, and the best.

    Raises:
        OutputExistsError, WriteError: the file cannot be written.
    """
    figure = _figure(8, 3.6)
    words: Mapping[Cost, str] = {"parameters": "parameters of the adapter", "latency": "latency over the base"}
    scored = [trial for trial in sweep.trials if trial.mean is not None]
    costs = [cost for cost in words if all(trial.cost(cost) is not None for trial in scored)]
    groups: dict[str, list[Trial]] = {}
    for trial in scored:
        place = trial.setting.placement
        groups.setdefault(trial.setting.kind if place is None else f"{trial.setting.kind} at {place}", []).append(trial)
    for axes, cost in zip(np.atleast_1d(figure.subplots(1, len(costs), sharey=True)), costs, strict=True):
        for label, group in groups.items():
            points = [(trial.cost(cost), trial.mean, trial.spread or 0.0) for trial in group]
            prices, means, spreads = zip(*points, strict=True)
            axes.errorbar(prices, means, spreads, fmt="o", capsize=2, label=label)
        front = sorted((trial.cost(cost) or 0.0, trial.mean) for trial in scored if cost in trial.front)
        axes.plot(*zip(*front, strict=True), color="0.6", zorder=0, label="Pareto front")
        axes.plot([sweep.best.cost(cost)], [sweep.best.mean], "*", color="black", markersize=11, zorder=5, label="best")
        axes.set_xlabel(words[cost])
        if cost == "parameters":
            axes.set_xscale("log")
    figure.axes[0].set_ylabel(f"{sweep.words}, validation")
    figure.axes[-1].legend(frameon=False)
    figure.suptitle(f"{sweep.data}, {len(sweep.seeds)} seed{'s' if len(sweep.seeds) > 1 else ''}")
    _save(figure, path, force=force)


def draw_drop(drop: Drop, path: Path, *, force: bool = False) -> None:
    """Draw the score with its interval, and the time over the base, over the number of dropped layers.

    Raises:
        OutputExistsError, WriteError: the file cannot be written.
    """
    figure = _figure(8, 3.2)
    scores, seconds = figure.subplots(1, 2, sharex=True)
    places = [len(point.layers) for point in drop.curve]
    intervals = [point.scores[drop.metric] for point in drop.curve]
    low, middle, high = (
        [np.nan if value is None else value for value in each]
        for each in (
            [point.low for point in intervals],
            [point.value for point in intervals],
            [point.high for point in intervals],
        )
    )
    scores.plot(places, middle, "o-")
    scores.fill_between(places, low, high, alpha=0.2, label="95 % interval")
    scores.set_ylabel(Metric(drop.metric).words)
    scores.legend(frameon=False)
    for label in ("idle", "without"):
        name = "idle slots" if label == "idle" else "no slots there"
        seconds.plot(places, [getattr(point, label).ratio for point in drop.curve], "o-", label=name)
    seconds.set_ylabel("latency over the base")
    seconds.legend(frameon=False)
    for axes in (scores, seconds):
        axes.set_xlabel("layers without adapter, from the bottom")
        axes.set_xticks(places)
    figure.suptitle(f"{drop.adapter}, {number_of(drop.rows, 'row')}")
    _save(figure, path, force=force)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path, *, force: bool) -> None:
    with Output(path, force).file() as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower())
