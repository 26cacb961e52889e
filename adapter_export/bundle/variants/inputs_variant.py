"""The graph in which every slot is an input without a default.

For language bindings that cannot override an initializer, and for providers that fold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from adapter_export.bundle.variants.variant import (
    BundleView,
    GraphDraft,
    GraphInterface,
    GraphView,
    RebuiltGraph,
    Variant,
    data_inputs,
    outputs_of,
    slot_inputs,
)
from adapter_export.format.manifest import Manifest
from adapter_export.numerics.runner import Arrays
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.slots import SlotPlan


class InputsVariant(Variant):
    """The graph with slots, whose slots must be fed."""

    name = "inputs"
    file = "model.inputs.onnx"
    summary = "one adapter per call"
    runs_as = "slots"

    def write(self, draft: GraphDraft, _base: OnnxBase) -> None:
        """Write the graph; it shares the weights of the graph with slots."""
        ir.save(_without_defaults(draft.model, draft.plan), draft.folder / self.file)

    def interfaces(self, manifest: Manifest) -> Iterator[GraphInterface]:
        """Yield the single file."""
        for file in self.files(manifest):
            yield GraphInterface(file, {**data_inputs(manifest), **slot_inputs(manifest)}, outputs_of(manifest))

    def feeds(self, graph: GraphView, arrays: Mapping[str, np.ndarray], chosen: Sequence[str | None]) -> Arrays:
        """Return the data inputs, and a tensor for every slot."""
        return {**arrays, **graph.bundle.tensors(chosen[0])}

    def rebuild(self, bundle: BundleView, _base: OnnxBase | None) -> Iterator[RebuiltGraph]:
        """Yield the graph with slots without its defaults."""
        for file in self.files(bundle.manifest):
            model = _without_defaults(bundle.model(bundle.manifest.graphs["slots"]), bundle.plan)
            yield RebuiltGraph(file, model, "its derivation from the graph with slots")


def _without_defaults(model: ir.Model, plan: SlotPlan) -> ir.Model:
    copy = model.clone()
    for slot in plan.slots:
        copy.graph.initializers.pop(slot.name).const_value = None
    return copy


VARIANT = InputsVariant()
