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


def draw_plan(plan: Plan, path: Path, *, force: bool = False) -> None:
    """Draw the cost of each kind over its bottleneck widths.

    Raises:
        OutputExistsError, WriteError: the file cannot be written.
    """
    figure = _figure(8, 3.2)
    shares: Mapping[str, Callable[[Choice], float | None]] = {
        "parameters, % of the base": lambda one: 100 * one.parameter_share,
        "multiply-accumulates, % of the base": lambda one: None if one.work_share is None else 100 * one.work_share,
        "latency over the base": lambda one: None if one.latency is None else one.latency.ratio,
    }
    drawn = {title: of for title, of in shares.items() if any(of(one) is not None for one in plan.choices)}
    kinds = dict.fromkeys(one.kind for one in plan.choices)
    for axes, (title, of) in zip(np.atleast_1d(figure.subplots(1, len(drawn))), drawn.items(), strict=True):
        for kind in kinds:
            points = [(one.bottleneck or 0, of(one)) for one in plan.choices if one.kind == kind]
            known = [(bottleneck, value) for bottleneck, value in points if value is not None]
            axes.plot(*zip(*known, strict=True), "o-", label=kind)
        axes.set_xscale("symlog", base=2)
        axes.set_xlabel("bottleneck")
        axes.set_ylabel(title)
    axes.legend(frameon=False)
    _save(figure, path, force=force)


def draw_sweep(found: Sweep, path: Path, *, force: bool = False) -> None:
    """Draw the scores over their costs: means with standard deviations, the Pareto fronts, and the best.

    Raises:
        OutputExistsError, WriteError: the file cannot be written.
    """
    figure = _figure(8, 3.6)
    words: Mapping[Cost, str] = {"parameters": "parameters of the adapter", "latency": "latency over the base"}
    scored = [one for one in found.trials if one.mean is not None]
    costs = [cost for cost in words if all(one.cost(cost) is not None for one in scored)]
    groups: dict[str, list[Trial]] = {}
    for one in scored:
        place = one.setting.placement
        groups.setdefault(one.setting.kind if place is None else f"{one.setting.kind} at {place}", []).append(one)
    for axes, cost in zip(np.atleast_1d(figure.subplots(1, len(costs), sharey=True)), costs, strict=True):
        for label, group in groups.items():
            points = [(one.cost(cost), one.mean, one.spread or 0.0) for one in group]
            prices, means, spreads = zip(*points, strict=True)
            axes.errorbar(prices, means, spreads, fmt="o", capsize=2, label=label)
        front = sorted((one.cost(cost) or 0.0, one.mean) for one in scored if cost in one.front)
        axes.plot(*zip(*front, strict=True), color="0.6", zorder=0, label="Pareto front")
        axes.plot([found.best.cost(cost)], [found.best.mean], "*", color="black", markersize=11, zorder=5, label="best")
        axes.set_xlabel(words[cost])
        if cost == "parameters":
            axes.set_xscale("log")
    figure.axes[0].set_ylabel(f"{found.words}, validation")
    figure.axes[-1].legend(frameon=False)
    figure.suptitle(f"{found.data}, {len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}")
    _save(figure, path, force=force)


def draw_drop(found: Drop, path: Path, *, force: bool = False) -> None:
    """Draw the score with its interval, and the time over the base, over the number of dropped layers.

    Raises:
        OutputExistsError, WriteError: the file cannot be written.
    """
    figure = _figure(8, 3.2)
    scores, seconds = figure.subplots(1, 2, sharex=True)
    places = [len(one.layers) for one in found.curve]
    own = [one.scores[found.metric] for one in found.curve]
    low, middle, high = (
        [np.nan if value is None else value for value in each]
        for each in ([one.low for one in own], [one.value for one in own], [one.high for one in own])
    )
    scores.plot(places, middle, "o-")
    scores.fill_between(places, low, high, alpha=0.2, label="95 % interval")
    scores.set_ylabel(Metric(found.metric).words)
    scores.legend(frameon=False)
    for label in ("idle", "without"):
        name = "idle slots" if label == "idle" else "no slots there"
        seconds.plot(places, [getattr(one, label).ratio for one in found.curve], "o-", label=name)
    seconds.set_ylabel("latency over the base")
    seconds.legend(frameon=False)
    for axes in (scores, seconds):
        axes.set_xlabel("layers without adapter, from the bottom")
        axes.set_xticks(places)
    figure.suptitle(f"{found.adapter}, {found.rows:,} rows")
    _save(figure, path, force=force)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path, *, force: bool) -> None:
    with Output(path, force).file() as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower())
