"""Changes of a base by an adapter, site by site: of a layer's weight if they are linear, or of a value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adapter_export.bases.base_view import BaseView
from adapter_export.bundle.golden.ablation import site_change
from adapter_export.dtypes import Array, Weights
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import AdapterGraph
from adapter_export.numerics.evaluate_adapter import evaluate
from adapter_export.numerics.merged_layers import features_of
from adapter_export.plugins.formats.doctor.diagnosis import SiteGroup
from adapter_export.plugins.formats.importers.match import inside
from adapter_export.sites.site import LAYERS, Site

_ROWS = 512
"""Rows of an update that are computed at a time, which bounds the memory at wide layers."""

_RANDOM_ROWS, _TOLERANCE = 4, 1e-9

Factor = tuple[float | None, str | None]
"""Factor of an update, and its formula."""


@dataclass(frozen=True)
class SiteChange:
    """Change at one site.

    Attributes:
        site: the site.
        kind: name of the graph.
        rank: rank, or width of a bottleneck.
        factor: factor of the update, and its formula.
        change: relative change of the weight or the value.
        of: what changes.
        zero: whether the update is exactly zero.
        overlap: ⟨W, ΔW⟩ / ‖ΔW‖², and its standard error if both were independent; `None` if unknown.
    """

    site: Site
    kind: str
    rank: int | None
    factor: Factor
    change: float
    of: Literal["weight", "value"]
    zero: bool
    overlap: tuple[float, float] | None = None


def site_changes(adapter: Adapter, base: BaseView, factor: Callable[[Site], Factor | None]) -> Iterator[SiteChange]:
    """Yield the change at each site; `factor` returns a known factor, else that of the graph is used."""
    sites = {site.name: site for site in base.sites}
    for name, placement in adapter.placements.items():
        site, graph = sites[name], adapter.graphs[placement.graph]
        rank = next((placement.widths[symbol] for symbol in ("r", "b") if placement.widths.get(symbol)), None)
        kind = re.sub(r"_\d+$", "", placement.graph)
        strength = factor(site) or (_factor_of(graph), None)
        update = _linear_update(graph, adapter.parameters(name), site)
        if update is None:
            change, _ = site_change(adapter, name, site.norm)
            yield SiteChange(site, kind, rank, strength, change, "value", change == 0)
            continue
        weight = base.weight_at(site)
        weight = None if weight is None else weight[features_of(site, len(weight))]
        change, overlap = _against(weight, update)
        if weight is None:
            change, _ = site_change(adapter, name, site.norm)
        of: Literal["weight", "value"] = "value" if weight is None else "weight"
        yield SiteChange(site, kind, rank, strength, change, of, update.is_zero, overlap)


def groups_of(changes: Iterable[SiteChange]) -> tuple[SiteGroup, ...]:
    """Group sites by name without layer, graph, rank and factor."""
    members: dict[tuple[object, ...], list[SiteChange]] = {}
    for change in changes:
        members.setdefault((inside(change.site), change.kind, change.rank, change.factor, change.of), []).append(change)
    return tuple(
        SiteGroup(
            inside(group[0].site),
            len(group),
            group[0].kind,
            group[0].rank,
            *group[0].factor,
            min(change.change for change in group),
            max(change.change for change in group),
            group[0].of,
            sum(change.zero for change in group),
        )
        for group in members.values()
    )


def _factor_of(graph: AdapterGraph) -> float | None:
    """Return the constant factor of two matrices; `None` for other graphs, and for those with learned factors."""
    learned = any(name.startswith(("scaling.", "gate.")) for name in graph.parameters)
    if learned or sum(node.op == "linear" for node in graph.nodes) != 2:
        return None
    return float(np.prod([node.attributes["factor"] for node in graph.nodes if node.op == "scale"]))


@dataclass(frozen=True)
class _LinearUpdate:
    """The update `(p − 1) ⊙ W + Q`, with factors `p` of the output (or the input), and rows of Qᵀ by chunks."""

    factors: Array
    of_input: bool
    shift: Array
    chunks: Callable[[], Iterator[tuple[slice, Array]]]

    @property
    def is_zero(self) -> bool:
        """True if it changes nothing at all."""
        still = bool((self.factors == 1).all()) and not self.shift.any()
        return still and not any(chunk.any() for _, chunk in self.chunks())


def _linear_update(graph: AdapterGraph, parameters: Weights, site: Site) -> _LinearUpdate | None:
    """Return the update of a layer's weight; `None` if the graph is not linear in the values of a layer."""
    if site.role not in LAYERS or not set(graph.inputs) <= {"u", "h"}:
        return None
    widths = {"u": site.width_in, "h": site.width}

    def run(**values: Array) -> Array:
        rows = len(next(iter(values.values())))
        read = {name: values.get(name, np.zeros((rows, widths[name])))[:, None] for name in graph.inputs}
        return np.asarray(evaluate(graph, read, parameters), np.float64)[:, 0]

    replaced, of_input = graph.replaces, graph.replaces == "u"
    shift = run(h=np.zeros((1, widths["h"])))[0]
    factors = run(**{replaced: np.ones((1, widths[replaced]))})[0] - shift

    def chunks() -> Iterator[tuple[slice, Array]]:
        for start in range(0, site.width_in, _ROWS) if not of_input and "u" in graph.inputs else ():
            rows = slice(start, min(start + _ROWS, site.width_in))
            yield rows, run(u=np.eye(site.width_in)[rows]) - shift

    generator = np.random.default_rng(0)
    random = {name: generator.standard_normal((_RANDOM_ROWS, width)) for name, width in widths.items()}
    expected = shift + factors * random[replaced]
    for rows, chunk in chunks():
        expected = expected + random["u"][:, rows] @ chunk
    result = run(**random)
    if np.abs(result - expected).max() > _TOLERANCE * max(1.0, float(np.abs(result).max())):
        return None
    return _LinearUpdate(factors, of_input, shift, chunks)


def _against(weight: Array | None, update: _LinearUpdate) -> tuple[float, tuple[float, float] | None]:
    """Return ‖ΔW‖ / ‖W‖, and the overlap of W with ΔW."""
    if weight is None:
        return 0.0, None
    whole = weight.astype(np.float64)
    scaled = (update.factors - 1) * whole if update.of_input else (update.factors - 1)[:, None] * whole
    squares, inner = 0.0, 0.0
    covered = False
    for rows, chunk in update.chunks():
        delta = scaled[:, rows] + chunk.T
        squares, inner, covered = squares + float((delta**2).sum()), inner + float((delta * whole[:, rows]).sum()), True
    if not covered:
        squares, inner = float((scaled**2).sum()), float((scaled * whole).sum())
    size = float(np.linalg.norm(whole))
    relative = float(np.sqrt(squares)) / (size or 1.0)
    if squares == 0 or not covered or bool((update.factors != 1).any()):
        return relative, None
    return relative, (inner / squares, size / np.sqrt(whole.size) / np.sqrt(squares))
