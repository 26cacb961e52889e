"""An exported graph held against its plan: every slot can be overridden, and feeds its operation as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from adapter_export.errors import AdapterExportError
from adapter_export.format.manifest import SlotRecord

_REARRANGING = frozenset({"Cast", "Transpose", "Identity"})
"""What a tensor that is stored as it is used does not need; it would be copied in every run."""


def verify_slots(model: ir.Model, slots: Sequence[SlotRecord]) -> None:
    """Hold an exported graph against its plan.

    Raises:
        AdapterExportError: it is not so. Whoever changed the graph after the slots went in has a bug.
    """
    inputs = {value.name for value in model.graph.inputs}
    names = {slot.name for slot in slots}
    faults = [fault for slot in slots for fault in _faults(model.graph, slot, slot.name in inputs)]
    extra = [name for name in model.graph.initializers if name in inputs and name not in names]
    faults += [f"`{name}` can be overridden and is no slot" for name in extra]
    if faults:
        raise AdapterExportError("the exported graph is not what was planned", found="; ".join(faults))


def _faults(graph: ir.Graph, slot: SlotRecord, is_input: bool) -> Iterator[str]:
    value = graph.initializers.get(slot.name)
    if value is None or not is_input:
        yield f"`{slot.name}` cannot be overridden"
        return
    tensor = value.const_value
    if tensor is None or tuple(tensor.shape.numpy()) != slot.neutral or tensor.dtype != ir.DataType.FLOAT:
        yield f"`{slot.name}` has another default than {list(slot.neutral)} float32"
    sizes = [dim if isinstance(dim, int) else None for dim in value.shape or ()]
    if sizes != [axis if isinstance(axis, int) else None for axis in slot.axes]:
        yield f"`{slot.name}` has shape {value.shape}"
    uses = [(node.op_type, index) for node, index in value.uses()]
    if not uses or not all(_is_direct(op, index) for op, index in uses):
        yield f"`{slot.name}` feeds {uses or 'nothing'}"


def _is_direct(op: str, index: int) -> bool:
    """Whether an operator computes with its input as it is; weights are [in, out], and so the second factor."""
    return op not in _REARRANGING and (op != "MatMul" or index == 1)
