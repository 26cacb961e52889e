"""Graphs in which one adapter is constant, for devices with a single adapter: ONNX Runtime may fold it."""

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
    initializers,
    outputs_of,
)
from adapter_export.dtypes import same_bits
from adapter_export.format.manifest import Manifest, VariantName
from adapter_export.numerics.runner import Arrays
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.rewrite.insert import baked


class BakedVariant(Variant):
    """One graph per selected adapter; the adapter's record in the manifest names it."""

    name = "baked"
    file = "model.baked.{adapter}.onnx"
    summary = "one constant adapter"
    standard = False

    @property
    def witnesses(self) -> tuple[VariantName, ...]:
        """The graphs with a base, which baked graphs lack."""
        return ("slots", "inputs")

    def is_wanted(self, _names: Sequence[str] | None, bake: Sequence[str]) -> bool:
        """Return whether any adapter is to be baked."""
        return bool(bake)

    def write(self, draft: GraphDraft, _base: OnnxBase) -> None:
        """Write a graph for each adapter to bake."""
        for adapter in draft.adapters:
            if adapter.name in draft.bake:
                draft.baked[adapter.name] = self.file.format(adapter=adapter.name)
                ir.save(baked(draft.model, draft.plan, adapter), draft.folder / draft.baked[adapter.name])

    def files(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the graph of each baked adapter."""
        return tuple(record.baked for record in manifest.adapters if record.baked is not None)

    def adapters(self, manifest: Manifest, file: str) -> tuple[str | None, ...]:
        """Return the one adapter of a graph."""
        return tuple(record.name for record in manifest.adapters if record.baked == file)

    def interfaces(self, manifest: Manifest) -> Iterator[GraphInterface]:
        """Yield each graph: data inputs only."""
        for file in self.files(manifest):
            yield GraphInterface(file, data_inputs(manifest), outputs_of(manifest))

    def compare_tensors(self, bundle: BundleView, name: str | None) -> tuple[Sequence[str], int] | None:
        """Compare the constants of an adapter's graph."""
        file = next((record.baked for record in bundle.manifest.adapters if record.name == name), None)
        if file is None:
            return None
        tensors = bundle.tensors(name)
        held = initializers(bundle.model(file), tensors)
        return [slot for slot, tensor in tensors.items() if not same_bits(held.get(slot), tensor)], len(tensors)

    def feeds(self, _graph: GraphView, arrays: Mapping[str, np.ndarray], _chosen: Sequence[str | None]) -> Arrays:
        """Return the data inputs."""
        return dict(arrays)

    def rebuild(self, bundle: BundleView, _base: OnnxBase | None) -> Iterator[RebuiltGraph]:
        """Yield the graph with slots with each adapter inserted."""
        for record in bundle.manifest.adapters:
            if record.baked is not None:
                slots = bundle.model(bundle.manifest.graphs["slots"])
                model = baked(slots, bundle.plan, bundle.source(record.name))
                yield RebuiltGraph(record.baked, model, "its derivation from the graph with slots")


VARIANT = BakedVariant()
