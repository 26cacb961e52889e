"""Adapters as files of fewer bits hold them."""

from __future__ import annotations

from dataclasses import replace

from adapter_export.dtypes import AdapterPrecision, Weights, narrowed, widened
from adapter_export.graph.adapter import HEAD, SHARED, Adapter, Placement
from adapter_export.graph.slot_form import fold_weights, inference_form

PRECISION = "adapter_precision"
"""The key of the training record that says to what an adapter was rounded."""


def rounded(adapter: Adapter, precision: AdapterPrecision) -> Adapter:
    """The adapter of which files of this precision lose nothing: its factors are in its weights, and these are rounded.

    Factors come first, since a rounded number times a factor is not a rounded one. What only training needs is gone.

    Raises:
        TensorError: a number leaves the range of float16.
        GraphError: a factor takes a number out of the range of float32.
    """
    if precision == "float32":
        return adapter
    weights: Weights = {}
    for owner, graph, _ in adapter.components():
        shared = set() if owner == HEAD else set(inference_form(graph).shared)
        common = "" if owner == HEAD else f"{SHARED}.{adapter.placements[owner].graph}"
        for name, tensor in fold_weights(graph, adapter.parameters(owner)).items():
            weights[f"{common if name in shared else owner}.{name}"] = tensor
    graphs = {name: inference_form(graph) for name, graph in adapter.graphs.items()}
    placements = {
        site: Placement(one.graph, {symbol: one.widths[symbol] for symbol in graphs[one.graph].symbols()})
        for site, one in adapter.placements.items()
    }
    head = adapter.head
    if head is not None:
        form = inference_form(head.graph)
        head = replace(head, graph=form, widths={symbol: head.widths[symbol] for symbol in form.symbols()})
    return replace(
        adapter,
        graphs=graphs,
        placements=placements,
        head=head,
        weights=widened(narrowed(weights, precision)),
        training={**adapter.training, PRECISION: precision},
    )
