"""The further graphs of a bundle, all reading the weights of the one with slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, BaseModelError, UsageError
from adapter_export.format.manifest import BankRecord, Flavour
from adapter_export.graph.adapter import Adapter
from adapter_export.onnx_backend.base.base import OnnxBase
from adapter_export.onnx_backend.graft.bank import (
    IDS_INPUT,
    bank_rows,
    bank_tensors,
    insert_bank,
)
from adapter_export.onnx_backend.slots import HeadSum, SlotPlan, slot_tensors

# Other forms of a graph with slots: every slot a required input, or one adapter as constants.


def with_required_inputs(model: ir.Model, slots: Iterable[str]) -> ir.Model:
    """A copy in which every slot is an input without a default.

    For bindings that cannot override an initializer, and for providers that fold it.
    """
    copy = model.clone()
    for name in slots:
        copy.graph.initializers.pop(name).const_value = None
    return copy


def baked(model: ir.Model, tensors: Weights) -> ir.Model:
    """A copy in which every slot is a constant with an adapter's tensor, so that ONNX Runtime may fold it."""
    copy = model.clone()
    for name, tensor in tensors.items():
        slot = copy.graph.initializers[name]
        slot.const_value = ir.Tensor(np.ascontiguousarray(tensor), name=name)
        slot.shape = ir.Shape(tensor.shape)
        copy.graph.inputs.remove(slot)
    return copy


BANK_FILE = "bank.bin"
"""The adapters of the graph `bank`."""

FLAVOURS: Mapping[Flavour, str] = {
    "slots": "model.onnx",
    "inputs": "model.inputs.onnx",
    "bank": "model.bank.onnx",
}
"""The file of each flavour."""

USUAL_FLAVOURS: tuple[Flavour, ...] = ("slots", "inputs", "bank")


@dataclass(frozen=True)
class Forms:
    """What is to be written beside the graph with slots.

    Attributes:
        flavours: which; the usual ones if not given, without a bank where there cannot be one.
        bake: the adapters that get a graph of their own, in which they are constant.
    """

    flavours: Sequence[Flavour] | None = None
    bake: Sequence[str] = ()


@dataclass
class Flavours:
    """What was written.

    Attributes:
        graphs: the file of each flavour.
        bank: what the bank holds, if there is one.
        baked: the graph of each adapter that has one of its own.
        left_out: why there is no bank, where nobody asked for one by name.
    """

    graphs: dict[str, str] = field(default_factory=lambda: {"slots": FLAVOURS["slots"]})
    bank: BankRecord | None = None
    baked: dict[str, str] = field(default_factory=dict)
    left_out: str | None = None


@dataclass(frozen=True)
class FlavourWriter:
    """Writes graphs beside one with slots.

    Attributes:
        folder: where that one lies, and the weights.
        base: the base.
        plan: the slots.
        heads: the outputs that heads fill.
        model: the graph with slots, after it was written: it refers to the weights in the folder.
        adapters: those of the bundle.
    """

    folder: Path
    base: OnnxBase
    plan: SlotPlan
    heads: Sequence[HeadSum]
    model: ir.Model
    adapters: Sequence[Adapter]

    def write(self, forms: Forms) -> Flavours:
        """Write graphs.

        Raises:
            UsageError: there is no adapter of a name to bake.
            AdapterError: the adapters cannot share a bank.
            BaseModelError: the base cannot have one.
        """
        written = Flavours()
        wanted = USUAL_FLAVOURS if forms.flavours is None else forms.flavours
        if "inputs" in wanted:
            written.graphs["inputs"] = FLAVOURS["inputs"]
            model = with_required_inputs(self.model, [slot.name for slot in self.plan.slots])
            ir.save(model, self.folder / FLAVOURS["inputs"])
        try:
            if "bank" in wanted:
                self._write_bank(written)
        except (AdapterError, BaseModelError) as error:
            if forms.flavours is not None:
                raise
            written.left_out = str(error)
        for name in forms.bake:
            written.baked[name] = self._bake(name)
        return written

    def _write_bank(self, written: Flavours) -> None:
        rows = bank_rows(self.plan, self.heads, self.adapters)
        model = insert_bank(self.base, self.plan, rows)
        _share_weights(model, self.model)
        store_bank(model, self.folder)
        ir.save(model, self.folder / FLAVOURS["bank"])
        written.graphs["bank"] = FLAVOURS["bank"]
        written.bank = BankRecord(IDS_INPUT, rows.names, bank_tensors(self.plan, self.heads))

    def _bake(self, name: str) -> str:
        adapter = next((adapter for adapter in self.adapters if adapter.name == name), None)
        if adapter is None:
            known = ", ".join(f"`{adapter.name}`" for adapter in self.adapters)
            raise UsageError("no adapter of this name is built", where="`--bake`", found=f"`{name}`", expected=known)
        path = f"model.baked.{name}.onnx"
        ir.save(baked(self.model, slot_tensors(self.plan, adapter)), self.folder / path)
        return path


def store_bank(model: ir.Model, folder: Path) -> None:
    """Move the tensors of a bank into a file.

    Raises:
        OSError: the operating system refused.
    """
    inputs = {value.name for value in model.graph.inputs}
    values = [value for name, value in model.graph.initializers.items() if name in inputs]
    tensors = [value.const_value for value in values if value.const_value is not None]
    stored = ir.external_data.convert_tensors_to_external(tensors, folder, BANK_FILE)
    for value, tensor in zip(values, stored, strict=True):
        value.const_value = tensor


def _share_weights(model: ir.Model, other: ir.Model) -> None:
    """Refer to the weights of the base where another graph of the same base has them."""
    for one, same in zip(model.graphs(), other.graphs(), strict=True):
        for name, value in one.initializers.items():
            if name in same.initializers:
                value.const_value = same.initializers[name].const_value
