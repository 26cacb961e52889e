"""The graph with slots: every slot is an overridable initializer whose default leaves the base unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

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
from adapter_export.dtypes import same_bits
from adapter_export.format.manifest import Manifest
from adapter_export.numerics.runner import Arrays
from adapter_export.onnx_backend.base.external import write_model
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.rewrite.checksums import add_checksums
from adapter_export.onnx_backend.rewrite.insert import insert_slots


class SlotsVariant(Variant):
    """The graph that every bundle has, and from which the others are derived."""

    name = "slots"
    file = "model.onnx"
    summary = "one adapter per call, or none"

    def is_wanted(self, _names: Sequence[str] | None, _bake: Sequence[str]) -> bool:
        """Return true: every bundle has it."""
        return True

    def write(self, draft: GraphDraft, _base: OnnxBase) -> None:
        """Write the graph, and the base's weights in a separate file."""
        write_model(draft.model, draft.folder / self.file, copy_weights=draft.copy_weights)

    def interfaces(self, manifest: Manifest) -> Iterator[GraphInterface]:
        """Yield the single file; its slots are optional inputs."""
        slots = slot_inputs(manifest)
        for file in self.files(manifest):
            inputs = {**data_inputs(manifest), **slots}
            yield GraphInterface(file, inputs, outputs_of(manifest), tuple(slots), manifest.model_version)

    def default_faults(self, manifest: Manifest, held: Mapping[str, np.ndarray]) -> Iterator[str]:
        """Yield each slot whose default is not neutral."""
        for slot in manifest.slots:
            neutral = np.full(slot.neutral, slot.neutral_value, np.float32)
            if slot.name in held and not same_bits(held[slot.name], neutral):
                yield f"`{slot.name}` has a default other than {list(slot.neutral)} of {slot.neutral_value:g}"

    def feeds(self, graph: GraphView, arrays: Mapping[str, np.ndarray], chosen: Sequence[str | None]) -> Arrays:
        """Return the data inputs, and the tensors of the adapter."""
        return {**arrays, **graph.bundle.tensors(chosen[0])}

    def rebuild(self, bundle: BundleView, base: OnnxBase | None) -> Iterator[RebuiltGraph]:
        """Yield the base with the slots inserted again."""
        manifest = bundle.manifest
        for file in self.files(manifest):
            model = None if base is None else insert_slots(base, bundle.plan)
            if base is not None and model is not None and manifest.checksums is not None:
                model = add_checksums(model, bundle.plan.slots, manifest.checksums, base.inputs)
            yield RebuiltGraph(file, model, "a new export of the model")


VARIANT = SlotsVariant()
