"""The bank: all adapters in one graph, so that each row of a batch runs through its adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from adapter_export.bundle.variants.variant import (
    BundleView,
    GraphDraft,
    GraphInterface,
    GraphView,
    Interface,
    RebuiltGraph,
    Variant,
    data_inputs,
    initializers,
    outputs_of,
)
from adapter_export.dtypes import Weights
from adapter_export.format.manifest import BankRecord, BankTensor, Manifest, VariantName
from adapter_export.numerics.runner import Arrays
from adapter_export.onnx_backend.base.external import readable
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.rewrite.bank_graph import (
    IDS_INPUT,
    BankRows,
    bank_rows,
    bank_tensors,
    insert_bank,
    is_fillable,
)
from adapter_export.onnx_backend.rewrite.checksums import add_bank_checksums
from adapter_export.onnx_backend.slots import SLOT_PREFIX
from adapter_export.runtime.bank import MASK_BELOW
from adapter_export.tables import number_of

BANK_FILE = "bank.bin"
"""File with the tensors of all adapters."""


class BankVariant(Variant):
    """The graph whose input `adapter_ids` selects a row of the bank for each row of the batch."""

    name: ClassVar[VariantName] = "bank"
    file = "model.bank.onnx"
    summary = "one adapter per row"
    optional = True
    holds = "rows"
    by_row = True

    def write(self, draft: GraphDraft, base: OnnxBase) -> None:
        """Write the graph, and its tensors into a separate file."""
        rows = bank_rows(draft.plan, draft.heads, draft.adapters)
        model = insert_bank(base, draft.plan, rows)
        for graph, same in zip(model.graphs(), draft.model.graphs(), strict=True):  # the base's weights as written
            for name, value in graph.initializers.items():
                if name in same.initializers:
                    value.const_value = same.initializers[name].const_value
        tensors = bank_tensors(draft.plan, draft.heads)
        record = BankRecord(IDS_INPUT, rows.names, is_fillable(draft.plan), tensors)
        if draft.checksums is not None:
            model = add_bank_checksums(model, draft.plan.slots, draft.checksums.output, record)
        self._save(draft, model, record)

    def refill(self, draft: GraphDraft, bundle: BundleView) -> None:
        """Write other rows into the unchanged graph."""
        record = bundle.manifest.bank
        if record is None:
            return
        rows = bank_rows(draft.plan, draft.heads, draft.adapters)
        model = bundle.model(bundle.manifest.graphs[self.name])
        for name, tensor in rows.tensors.items():
            model.graph.initializers[name].const_value = ir.Tensor(tensor, name=name)
        self._save(draft, model, replace(record, rows=rows.names))

    def refilled(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the graph and its tensors."""
        return (*self.files(manifest), BANK_FILE) if self.files(manifest) else ()

    def adapters(self, manifest: Manifest, _file: str) -> tuple[str | None, ...]:
        """Return the rows of the bank."""
        return () if manifest.bank is None else manifest.bank.rows

    def interfaces(self, manifest: Manifest) -> Iterator[GraphInterface]:
        """Yield the one file."""
        for file in self.files(manifest):
            inputs = {**data_inputs(manifest), **bank_inputs(manifest)}
            yield GraphInterface(file, inputs, outputs_of(manifest), overridable_in_bank(manifest))

    def default_faults(self, manifest: Manifest, held: Mapping[str, np.ndarray]) -> Iterator[str]:
        """Yield each tensor that does not have a row for each adapter."""
        bank = manifest.bank
        for tensor in () if bank is None else bank.tensors:
            rows = held.get(tensor.name)
            if bank is not None and rows is not None and rows.shape[:1] != (len(bank.rows),):
                yield f"`{tensor.name}` {list(rows.shape)} does not have {number_of(len(bank.rows), 'row')}"

    def compare_tensors(self, bundle: BundleView, name: str | None) -> tuple[Sequence[str], int] | None:
        """Compare an adapter's row, which is padded with zeros if the adapter is narrower than others."""
        bank, files = bundle.manifest.bank, self.files(bundle.manifest)
        if bank is None or not files or name not in bank.rows:
            return None
        row, tensors = bank.rows.index(name), bundle.tensors(name)
        held = initializers(bundle.model(files[0]), [tensor.name for tensor in bank.tensors])
        wrong = [each.name for each in bank.tensors if not _holds(held.get(each.name), row, each, tensors)]
        return wrong, len(bank.tensors)

    def feeds(self, graph: GraphView, arrays: Mapping[str, np.ndarray], chosen: Sequence[str | None]) -> Arrays:
        """Return the data inputs, and the bank row for each batch row."""
        return {**arrays, **adapter_ids(graph.bundle.manifest, chosen)}

    def rebuild(self, bundle: BundleView, base: OnnxBase | None) -> Iterator[RebuiltGraph]:
        """Yield the base with the bank inserted again, with its current rows."""
        for file in self.files(bundle.manifest):
            yield RebuiltGraph(file, None if base is None else self._again(bundle, base, file), "a new export")

    def common(self, constants: Iterable[str]) -> list[str]:
        """Return the constants of the base: the nodes of adapters differ here."""
        return [name for name in constants if not name.startswith(SLOT_PREFIX)]

    def _again(self, bundle: BundleView, base: OnnxBase, file: str) -> ir.Model | None:
        manifest, held = bundle.manifest, bundle.model(file).graph.initializers
        if manifest.bank is None:
            return None
        values = {tensor.name: held[tensor.name].const_value for tensor in manifest.bank.tensors if tensor.name in held}
        tensors = {name: np.asarray(readable(value).numpy()) for name, value in values.items() if value is not None}
        model = insert_bank(base, bundle.plan, BankRows(manifest.bank.rows, tensors))
        if manifest.checksums is not None:
            model = add_bank_checksums(model, bundle.plan.slots, manifest.checksums, manifest.bank)
        return model

    def _save(self, draft: GraphDraft, model: ir.Model, record: BankRecord) -> None:
        inputs = {value.name for value in model.graph.inputs}
        values = [value for name, value in model.graph.initializers.items() if name in inputs]
        tensors = [value.const_value for value in values if value.const_value is not None]
        stored = ir.external_data.convert_tensors_to_external(tensors, draft.folder, BANK_FILE)
        for value, tensor in zip(values, stored, strict=True):
            value.const_value = tensor
        ir.save(model, draft.folder / self.file)
        draft.bank, draft.bank_model = record, model


def bank_inputs(manifest: Manifest) -> Interface:
    """Return the inputs of a bank's graphs besides the data inputs."""
    if manifest.bank is None:
        return {}
    tensors = {tensor.name: ("float32", tensor.axes) for tensor in manifest.bank.tensors}
    return {manifest.bank.ids: ("int64", ("batch",)), **tensors}


def overridable_in_bank(manifest: Manifest) -> tuple[str, ...]:
    """Return the overridable tensors of a bank."""
    return () if manifest.bank is None else tuple(tensor.name for tensor in manifest.bank.tensors)


def adapter_ids(manifest: Manifest, chosen: Sequence[str | None]) -> Arrays:
    """Return the adapters' rows in the bank, int64 [rows]; empty for a bundle without a bank."""
    bank = manifest.bank
    return {} if bank is None else {bank.ids: np.array([bank.rows.index(name) for name in chosen], np.int64)}


def _holds(held: np.ndarray | None, row: int, tensor: BankTensor, tensors: Weights) -> bool:
    if held is None or row >= len(held):
        return False
    row_values = held[row]
    if tensor.slot is None:  # a mask: zeros, then very low numbers; their counts are verified when it runs
        classes = int((row_values == 0).sum())
        return classes > 0 and not row_values[:classes].any() and bool(np.all(row_values[classes:] < MASK_BELOW))
    expected = tensors.get(tensor.slot)
    if expected is None or row_values.ndim != expected.ndim:
        return False
    padding = [(0, wide - narrow) for wide, narrow in zip(row_values.shape, expected.shape, strict=True)]
    return all(behind >= 0 for _, behind in padding) and np.pad(expected, padding).tobytes() == row_values.tobytes()


VARIANT = BankVariant()
