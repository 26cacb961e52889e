"""Measure the effect of each adapter: on the outputs of the base, and on the value it replaces at each site.

An adapter with zero up-projections or zero scale passes every comparison with a reference, because it correctly
computes nothing. The effect on outputs costs no run: golden vectors of the base and of the adapter are compared. The
effect at a site is computed by NumPy on random values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.dtypes import FLOAT_TYPES, Array
from adapter_export.format.check_report import EffectRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import BASE_NORM, bind_base_norm
from adapter_export.numerics.budget import graph_budget
from adapter_export.numerics.evaluate_adapter import borrowed, evaluate, evaluate_site, sample_ids, site_scale
from adapter_export.onnx_backend.rewrite.insert import site_norms
from adapter_export.sites.site import Norm

_BATCH, _TOKENS = 2, 8
_NAMED = 6


def effects(bundle: OpenedBundle, names: Collection[str]) -> tuple[EffectRecord, ...]:
    """Return the effect of each of these adapters; adapters that are only a head are skipped.

    Raises:
        FileError, FormatError: golden vectors or an adapter cannot be read.
    """
    norms = site_norms(bundle.slots_model)
    sources = {name: bundle.source(name) for name in names}
    return tuple(_effect(bundle, name, source, norms) for name, source in sources.items() if source.placements)


def _effect(bundle: OpenedBundle, name: str, adapter: Adapter, norms: Mapping[str, Norm]) -> EffectRecord:
    changes = dict(_output_changes(bundle, name))
    output = max(changes, key=lambda each: changes[each][0], default=None)
    at_sites = {site: site_change(adapter, site, norms.get(site)) for site in adapter.placements}
    return EffectRecord(
        adapter=name,
        output=output,
        change=0.0 if output is None else changes[output][0],
        beyond_rounding=any(beyond for _, beyond in changes.values()),
        sites={site: change for site, (change, _) in at_sites.items()},
        idle=tuple(site for site, (_, beyond) in at_sites.items() if not beyond),
    )


def _output_changes(bundle: OpenedBundle, name: str) -> Iterator[tuple[str, tuple[float, bool]]]:
    """Yield for each float output of the base ‖with adapter − base‖ / ‖base‖, and whether that exceeds rounding.

    Float32 rounding is the threshold even for an 8-bit base, because one reference computes both sides.
    """
    base, vectors = bundle.golden(None), bundle.golden(name)
    of_base = {case.name: outputs for case, outputs in zip(base.cases, base.outputs, strict=True)}
    allowance = replace(bundle.allowance(vectors.cases), stored="float32")
    for output in bundle.base_outputs:
        pairs = [
            (outputs[output].astype(np.float64), of_base[case.name][output].astype(np.float64))
            for case, outputs in zip(vectors.cases, vectors.outputs, strict=True)
            if output in outputs and case.name in of_base and of_base[case.name][output].dtype.name in FLOAT_TYPES
        ]
        if pairs:
            most = max(float(np.abs(changed - other).max(initial=0)) for changed, other in pairs)
            allowed = allowance.budget(*(outputs[output] for outputs in of_base.values())).absolute
            yield output, (_relative(*map(_joined, zip(*pairs, strict=True))), most > allowed)


def _joined(arrays: tuple[Array, ...]) -> Array:
    return np.concatenate([array.ravel() for array in arrays])


def _relative(changed: Array, before: Array) -> float:
    length = float(np.linalg.norm(before))
    return float(np.linalg.norm(changed - before)) / (length or 1.0)


def site_change(adapter: Adapter, site: str, norm: Norm | None = None) -> tuple[float, bool]:
    """Return ‖result − replaced‖ / ‖replaced‖ at a site on random values, and whether that exceeds rounding.

    The values are standard normal; the block's output `y` is the base's norm of their sum.
    """
    placement = adapter.placements[site]
    graph, generator = adapter.graphs[placement.graph], np.random.default_rng(0)
    width = placement.widths.get("d", _TOKENS)
    widths = {"h": width, "x": width, "u": 1 if graph.reads_ids else placement.widths.get("d_in", width)}
    values: dict[str, Array] = {
        name: generator.standard_normal((_BATCH, _TOKENS, size)) for name, size in widths.items()
    }
    if graph.reads_ids:
        values["u"] = sample_ids(graph, adapter.parameters(site), (_BATCH, _TOKENS), generator)
    values["y"] = _whole(values, norm, width)
    replaced = values[graph.replaces]
    result = evaluate_site(adapter, site, values, norm)
    scale = max(site_scale(adapter, site, values, norm), float(np.abs(replaced).max()))
    allowed = graph_budget("float32", graph, placement.widths, scale=scale, tokens=_TOKENS)
    return _relative(result, replaced), bool(np.abs(result - replaced).max() > allowed.absolute)


def _whole(values: Mapping[str, Array], norm: Norm | None, width: int) -> Array:
    """Return the block's output: the norm of the residual sum, or the sum if the norm is absent or unknown."""
    chain = Chain("h")
    chain.op("add", "sum", "x")
    if norm is not None and norm.kind != "unknown":
        chain.op(BASE_NORM, "normed")
    graph = bind_base_norm(chain.graph(), norm)
    return evaluate(graph, {name: values[name] for name in graph.inputs}, borrowed(graph, {}, width))


def note_of(effect: EffectRecord) -> str | None:
    """Return a note on an adapter without effect, overall or at some sites; `None` for any other."""
    idle = [f"`{site}`" for site in effect.idle[:_NAMED]]
    more = f" and {len(effect.idle) - _NAMED} more" if len(effect.idle) > _NAMED else ""
    if len(effect.idle) == len(effect.sites):
        return f"adapter `{effect.adapter}` has no effect: at each of its sites its result equals the replaced value"
    if not effect.beyond_rounding:
        part = f"by {effect.change:.1e}, which is within rounding"
        return f"adapter `{effect.adapter}` has no effect: it changes `{effect.output}` {part}"
    if idle:
        return f"adapter `{effect.adapter}` has no effect at {', '.join(idle)}{more}"
    return None
