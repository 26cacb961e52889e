"""Reports of AdapterDrop: scores, parameters and latencies of an adapter without its lowest layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapter_export.bundle.latency import Latency, ratio, sample, slots_call, times
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.tasks.metrics import Metric
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.plugins.lab.scores import Score
from adapter_export.runtime.graphs import open_session
from adapter_export.tables import Described, Table, html_of, number_of

POINT = 0.01
"""Acceptable loss of a metric from 0 to 1."""


@dataclass(frozen=True)
class Dropped:
    """An adapter without some of its layers.

    Attributes:
        layers: the dropped layers, counted from 0.
        sites: the number of sites at which it still acts.
        parameters: remaining parameters, including the head.
        scores: by metric, with 95 % intervals.
        idle: latency relative to the base of the graph with all slots, those of the dropped layers neutral.
        without: latency relative to the base without those slots, as in a bundle built from this adapter only.
    """

    layers: tuple[int, ...]
    sites: int
    parameters: int
    scores: Mapping[str, Score]
    idle: Latency
    without: Latency


@dataclass(frozen=True, repr=False)
class Drop(Described):
    """Costs and scores for each number of dropped layers; `print` and notebooks show them.

    Attributes:
        adapter: its name.
        metric: primary metric of its task.
        rows: number of answered rows.
        tokens: tokens of the timed row.
        curve: no layer dropped, the lowest, the two lowest, and so on, and the chosen set of layers.
        written: the written adapter; null without an output.
        folder: the output.
        notes: conclusions from the numbers, in clauses.
    """

    adapter: str
    metric: str
    rows: int
    tokens: int
    curve: tuple[Dropped, ...]
    written: Dropped | None
    folder: Path | None
    notes: tuple[str, ...]

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {"adapter": self.adapter, "metric": self.metric, "rows": self.rows, "choices": len(self.curve)}

    def table(self) -> Table:
        """Return a row for each point of the curve; latencies are relative to the base."""
        names = list(self.curve[0].scores)
        rows = [
            [
                ", ".join(map(str, point.layers)) or "none",
                f"{point.sites}",
                f"{point.parameters:,}",
                f"{point.scores[self.metric]} ({point.scores[self.metric].interval})",
                *(str(point.scores[name]) for name in names if name != self.metric),
                f"{point.idle.ratio:.2f}",
                f"{point.without.ratio:.2f}",
            ]
            for point in self.curve
        ]
        words = [Metric(name).words for name in (self.metric, *(name for name in names if name != self.metric))]
        columns = ["dropped layers", "sites", "parameters", *words, "idle slots", "no slots"]
        return Table(
            columns, rows, f"adapter `{self.adapter}`, {number_of(self.rows, 'row')}", "l" + "r" * (len(columns) - 1)
        )

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        return {**asdict(self), "folder": None if self.folder is None else str(self.folder)}

    def __str__(self) -> str:
        return "\n".join([str(self.table()), *self.notes])

    def _repr_html_(self) -> str:
        return html_of(self.table(), *self.notes)


def time_dropped(
    base: OnnxBase, whole: Adapter, dropped: Sequence[Adapter], tokens: int
) -> list[tuple[Latency, Latency]]:
    """Time each adapter in the slots of the whole one and in a graph of its own, beside the base: `idle`, `without`.

    One row, one thread, calls in turns. Raises `RequestError` if ONNX Runtime cannot compute such a row.
    """
    inputs, latencies = sample(base.inputs, 1, tokens, base.lengths), []
    alone = open_session(base.path, threads=1), inputs
    for adapter in dropped:
        with slots_call(base, whole, adapter, inputs) as idle, slots_call(base, adapter, adapter, inputs) as bare:
            seconds = times(alone, idle, bare)
        latencies.append((ratio(seconds, 1, 0), ratio(seconds, 2, 0)))
    return latencies


def findings(curve: Sequence[Dropped], metric: Metric) -> tuple[str, ...]:
    """Return clauses on the layers that can be dropped, and on the latency with and without idle slots."""
    whole, notes = curve[0].scores[metric.name].value, []
    if whole is not None and metric.more_is_better and metric.most == 1:
        candidates = [point for point in curve if (point.scores[metric.name].value or 0) >= whole - POINT]
        most = max(candidates, key=lambda point: len(point.layers))
        lost = whole - (most.scores[metric.name].value or 0)
        change = f"{abs(lost) * 100:.1f} points {'less' if lost > 0 else 'more'}" if lost else "no loss"
        named = f"of the layers {', '.join(map(str, most.layers))}" if most.layers else "of no layer"
        notes.append(f"the adapters {named} can be dropped for at most 1 point of {metric.words}: {change}")
    last = max(curve, key=lambda point: len(point.layers))
    notes.append(
        f"where the adapter of {number_of(len(last.layers), 'layer')} is dropped, idle slots take {last.idle} times as "
        f"long as the base, and a graph without slots there {last.without}: bundles of the dropped adapter have none "
        "there"
    )
    return tuple(notes)
