"""The bank in two parts, below and above its first adapter, so that a text is computed once for all adapters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from adapter_export.bundle.variants.bank_variant import BankVariant, adapter_ids, bank_inputs, overridable_in_bank
from adapter_export.bundle.variants.variant import (
    BundleView,
    GraphDraft,
    GraphInterface,
    GraphView,
    RebuiltGraph,
    data_inputs,
    outputs_of,
)
from adapter_export.format.manifest import FanoutRecord, Manifest
from adapter_export.numerics.runner import Arrays
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.rewrite.fanout import ROWS_INPUT, cut_bank

PREFIX_FILE = "model.prefix.onnx"
"""File of the graph below the first adapter."""


class FanoutVariant(BankVariant):
    """The upper part of the bank; each row selects a text, whose lower part was computed, and an adapter."""

    name = "fanout"
    file = "model.fanout.onnx"
    summary = "one text and adapter per row"
    standard = False
    needs = "bank"
    by_text = True

    def write(self, draft: GraphDraft, _base: OnnxBase) -> None:
        """Split the written bank, and write both parts."""
        self._cut(draft)

    def refill(self, draft: GraphDraft, bundle: BundleView) -> None:
        """Split the bank again."""
        if bundle.manifest.fanout is not None:
            self._cut(draft)

    def refilled(self, manifest: Manifest) -> tuple[str, ...]:
        """Return both parts."""
        return () if manifest.fanout is None else (*self.files(manifest), manifest.fanout.prefix)

    def interfaces(self, manifest: Manifest) -> Iterator[GraphInterface]:
        """Yield the upper part, then the lower one."""
        fanout = manifest.fanout
        if fanout is None:
            return
        values = {record.name: (record.dtype, record.axes) for record in fanout.values}
        rows = {fanout.rows: ("int64", ("rows",))}
        for file in self.files(manifest):
            inputs = {**data_inputs(manifest), **bank_inputs(manifest), **rows, **values}
            yield GraphInterface(file, inputs, outputs_of(manifest), overridable_in_bank(manifest))
        yield GraphInterface(fanout.prefix, data_inputs(manifest), values)

    def feeds(self, graph: GraphView, arrays: Mapping[str, np.ndarray], chosen: Sequence[str | None]) -> Arrays:
        """Return the texts, their values below the first adapter, and the text and adapter of each row.

        There is one more text than rows, in reverse order, so that a row that is not copied is detected.
        """
        texts = {name: np.concatenate([array[:1], array[::-1]]) for name, array in arrays.items()}
        count = len(next(iter(arrays.values())))
        return self.rows_of(graph, texts, np.arange(count, 0, -1), chosen)

    def rows_of(
        self, graph: GraphView, texts: Mapping[str, np.ndarray], rows: np.ndarray, chosen: Sequence[str | None]
    ) -> Arrays:
        """Return the feeds of a call with a text and an adapter for each row.

        Args:
            graph: the graph to run.
            texts: data inputs of the texts.
            rows: text of each row, int64 [rows].
            chosen: adapter of each row.
        """
        fanout = graph.bundle.manifest.fanout
        if fanout is None:
            return dict(texts)
        below = graph.compute(fanout.prefix, texts)
        return {**texts, **below, **adapter_ids(graph.bundle.manifest, chosen), fanout.rows: rows}

    def rebuild(self, bundle: BundleView, _base: OnnxBase | None) -> Iterator[RebuiltGraph]:
        """Yield both parts of a new split of the bank."""
        manifest = bundle.manifest
        if manifest.fanout is not None and manifest.bank is not None:
            again, source = cut_bank(bundle.model(manifest.graphs["bank"]), manifest.bank), "a new split of `bank`"
            yield RebuiltGraph(manifest.fanout.prefix, again.prefix, source)
            yield RebuiltGraph(manifest.graphs[self.name], again.upper, source)

    def common(self, _constants: Iterable[str]) -> list[str]:
        """Return no constants: the position of the first adapter decides which part contains a constant of the base."""
        return []

    def _cut(self, draft: GraphDraft) -> None:
        assert draft.bank_model is not None  # the bank is written first
        assert draft.bank is not None
        cut = cut_bank(draft.bank_model, draft.bank)
        ir.save(cut.prefix, draft.folder / PREFIX_FILE)
        ir.save(cut.upper, draft.folder / self.file)
        draft.fanout = FanoutRecord(PREFIX_FILE, ROWS_INPUT, cut.values)


VARIANT = FanoutVariant()
