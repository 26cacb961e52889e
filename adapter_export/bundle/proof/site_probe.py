"""Compare every adapter at every site with float64, on the values that reach the site in the exported graph.

The graph exposes the inputs and the result of each site, and the input of the head. Each site is compared on the values
it received, so earlier errors do not count against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Case, scale
from adapter_export.bundle.proof.compare_arrays import compare, missing
from adapter_export.dtypes import Weights
from adapter_export.format.check_report import ComparisonRecord, Finding, Measurement, SpanRecord
from adapter_export.format.manifest import AdapterRecord, Manifest
from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.numerics.budget import Budget, graph_budget
from adapter_export.numerics.evaluate_adapter import BORROWED, evaluate_head, evaluate_site, site_scale
from adapter_export.numerics.runner import Arrays
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.rewrite.insert import exposed, result_of, site_norms, with_site_outputs
from adapter_export.onnx_backend.slots import REPLACED
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.site import Norm

IDLE = Budget(0.0, "an idle slot returns what it replaces")


@dataclass(frozen=True)
class SiteProbe:
    """A session on a bundle's graph that exposes inner values, without optimization, and the norms adapters apply."""

    session: ort.InferenceSession
    manifest: Manifest
    norms: Mapping[str, Norm]

    @classmethod
    def of(cls, bundle: OpenedBundle) -> SiteProbe:
        """Open a probe of a bundle's graph with slots."""
        model = bundle.slots_model
        session = open_session(with_site_outputs(model), bundle.home, optimize=False)
        return cls(session, bundle.manifest, site_norms(model))

    def check(self, case: Case, adapter: Adapter, record: AdapterRecord, tensors: Weights) -> list[Measurement]:
        """Compare every site of the graph in order of evaluation, then the head; `tensors` fill every slot."""
        values = run_session(self.session, {**case.arrays, **tensors})
        paths = {site.name: site.path for site in self.manifest.sites}
        return [
            Measurement(
                **vars(comparison),
                kind="site",
                name=owner,
                against="float64",
                adapter=record.name,
                case=case.name,
                variant="slots",
                level="none",
                axes=case.axes,
                path=paths.get(owner),
            )
            for owner, comparison in self._comparisons(values, case, adapter, record.output)
        ]

    def _comparisons(
        self, values: Arrays, case: Case, adapter: Adapter, output: str | None
    ) -> Iterator[tuple[str, ComparisonRecord]]:
        for site, replaced in self._places(values, adapter):
            result = values.get(exposed(site, result_of(replaced)))
            if result is not None and not result.size and 0 in case.axes.values():
                continue  # an encoder is skipped if the cache has its tokens
            yield site, _compare_site(values, adapter, site, replaced, self.norms.get(site))
        if adapter.head is None:
            return
        hidden, result = values.get(exposed(HEAD, "hidden")), values.get(output or "")
        if hidden is None or result is None:
            yield HEAD, missing(IDLE)
            return
        masks = [case.arrays[record.name] for record in self.manifest.inputs if record.role == "mask"]
        fitting = [mask for mask in masks if mask.shape == hidden.shape[:2]]
        expected = evaluate_head(adapter, hidden, fitting[0] if fitting else np.ones(hidden.shape[:2]))
        allowed = _budget(adapter, HEAD, result, scale(expected), hidden.shape[1])
        yield HEAD, compare(result, expected.astype(result.dtype), allowed)

    def _places(self, values: Arrays, adapter: Adapter) -> Iterator[tuple[str, str]]:
        """Yield each site and the value that an adapter or its idle slots replace, in order of evaluation."""
        replaced = {site: adapter.graphs[placement.graph].replaces for site, placement in adapter.placements.items()}
        slots = {slot.site for slot in self.manifest.slots}
        for site in self.manifest.sites:
            shown = [name for name in REPLACED if exposed(site.name, result_of(name)) in values]
            lost = site.name in slots and not shown
            acts = {replaced[site.name]} if site.name in replaced else {"h"} if lost else set[str]()
            yield from ((site.name, name) for name in REPLACED if name in {*shown, *acts})


def _compare_site(values: Arrays, adapter: Adapter, site: str, replaced: str, norm: Norm | None) -> ComparisonRecord:
    """Compare the replacement of one value of a site."""
    placement = adapter.placements.get(site)
    graph = None if placement is None else adapter.graphs[placement.graph]
    acts = graph is not None and graph.replaces == replaced
    needed = (*graph.inputs, replaced) if graph is not None and acts else (replaced,)
    shown = {name: values.get(exposed(site, name)) for name in (*needed, *BORROWED, result_of(replaced))}
    held = {name: value for name, value in shown.items() if value is not None}
    if not held.keys() >= {*needed, result_of(replaced)}:
        return missing(IDLE)
    result = held.pop(result_of(replaced))
    if not acts:
        return compare(result, held[replaced], IDLE)
    expected = evaluate_site(adapter, site, held, norm)
    tokens = result.shape[-2] if result.ndim > 1 else 1
    allowed = _budget(adapter, site, result, site_scale(adapter, site, held, norm), tokens)
    return compare(result, expected.astype(result.dtype), allowed)


def _budget(adapter: Adapter, owner: str, actual: np.ndarray, scale: float, tokens: int) -> Budget:
    graph, widths = next((graph, widths) for name, graph, widths in adapter.components() if name == owner)
    return graph_budget(actual.dtype.name, graph, widths, scale=scale, tokens=tokens)


def of_sites(results: Sequence[Measurement]) -> Iterator[Finding]:
    """Yield a finding for each site of each adapter, and for its head."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for result in results:
        groups.setdefault((result.adapter or "", result.name), []).append(result)
    for (adapter, site), comparisons in groups.items():
        path = "" if comparisons[0].path is None else f" (torch: {comparisons[0].path})"
        claim, detail = f"`{adapter}` computes its formula at `{site}`", "{ratio} of the float64 budget"
        coverage = (SpanRecord("shapes", len({result.case for result in comparisons}), None),)
        yield replace(
            Finding.measured("site", f"{adapter}/{site}", claim, comparisons, detail, coverage), where=f"{site}{path}"
        )
