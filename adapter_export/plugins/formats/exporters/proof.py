"""Comparison of an adapter with its export, site by site, in float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adapter_export.errors import ParityError
from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.graph.graph import BORROWED_BIAS, BORROWED_WEIGHT
from adapter_export.numerics.evaluate_adapter import evaluate_head, evaluate_site, sample_ids
from adapter_export.plugins.formats.exporters.export_format import ExportRequest
from adapter_export.sites.site import Norm, Site
from adapter_export.words import quoted

_TEXTS, _TOKENS = 2, 3
_ANY_NORM = Norm("layer", 1e-5, BORROWED_WEIGHT, BORROWED_BIAS)
"""A norm for graphs that apply the base's norm; both graphs get the same one."""


def compare_with_export(request: ExportRequest, exported: Adapter, allowed: float) -> float:
    """Return the largest difference of any value, relative to the largest value at its site.

    Both adapters receive the same random values. Raises ParityError if their sites differ, or their results differ by
    more than `allowed`.
    """
    adapter, sites = request.adapter, {site.name: site for site in request.base.sites}
    if adapter.placements.keys() != exported.placements.keys() or (adapter.head is None) != (exported.head is None):
        different = sorted(adapter.placements.keys() ^ exported.placements.keys())
        raise ParityError("the exported adapter", found=quoted(different) or "no head", expected="the same places")
    random = np.random.default_rng(0)
    errors_by_site = {
        name: _difference(name, adapter, exported, _values(sites[name], adapter, random)) for name in adapter.placements
    }
    if adapter.head is not None:
        hidden = random.standard_normal((_TEXTS, _TOKENS, request.base.sites.width))
        mask = np.ones((_TEXTS, _TOKENS))
        errors_by_site[HEAD] = _relative(evaluate_head(adapter, hidden, mask), evaluate_head(exported, hidden, mask))
    worst = max(errors_by_site, key=lambda name: errors_by_site[name])
    if not errors_by_site[worst] <= allowed:
        raise ParityError(
            f"the exported adapter at `{worst}`",
            found=f"a relative difference of {errors_by_site[worst]:.1e}",
            expected=f"at most {allowed:.0e}, in float64",
        )
    return errors_by_site[worst]


def _difference(site: str, adapter: Adapter, exported: Adapter, values: Mapping[str, np.ndarray]) -> float:
    wanted, actual = (evaluate_site(side, site, values, _ANY_NORM) for side in (adapter, exported))
    replaced = {side.graphs[side.placements[site].graph].replaces for side in (adapter, exported)}
    return _relative(wanted, actual) if len(replaced) == 1 else float("inf")


def _relative(wanted: np.ndarray, actual: np.ndarray) -> float:
    if wanted.shape != actual.shape:
        return float("inf")
    return float(np.abs(wanted - actual).max() / max(np.abs(wanted).max(), np.finfo(np.float64).tiny))


def _values(site: Site, adapter: Adapter, random: np.random.Generator) -> dict[str, np.ndarray]:
    width, width_in = site.width, adapter.placements[site.name].widths.get("d_in", site.width_in)
    values = {name: random.standard_normal((_TEXTS, _TOKENS, width)) for name in ("h", "x", "y")}
    same = site.u is not None and site.u == site.x
    values["u"] = values["x"] if same else random.standard_normal((_TEXTS, _TOKENS, width_in))
    graph = adapter.graphs[adapter.placements[site.name].graph]
    if graph.reads_ids:
        values["u"] = sample_ids(graph, adapter.parameters(site.name), (_TEXTS, _TOKENS), random)
    return {**values, BORROWED_WEIGHT: random.standard_normal(width), BORROWED_BIAS: random.standard_normal(width)}
