"""A bank: all adapters of a build in one graph, so that each row of a batch runs through its own.

The adapters are rows of tensors, all of one width: narrower ones are filled up with zeros so that nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import Array, Weights
from adapter_export.errors import AdapterError, BaseModelError, argument
from adapter_export.format.manifest import BankTensor
from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.onnx_backend.base.base import OnnxBase
from adapter_export.onnx_backend.graft.insert import ParameterBinding, insert
from adapter_export.onnx_backend.graft.surgery import Graft
from adapter_export.onnx_backend.lowering import Writer
from adapter_export.onnx_backend.slots import SLOT_PREFIX, HeadSum, SlotGroup, SlotPlan, slot_tensors

IDS_INPUT = "adapter_ids"

ADAPTERS_AXIS = "adapters"
"""The first axis of every tensor of a bank; its length is free, as that of a bottleneck is."""

_IN_ONE_ROW, _ROWS_APART = 2, 3
"""The axes of a value that has the tokens of all rows on one axis, and of one that has batch and tokens apart."""

_SWAP = {"perm": [1, 0, 2]}

_NO_ROW = np.iinfo(np.int64).max

MASKED = -3e38
"""The number that a bank gives for a class that a row's adapter does not have; a softmax makes it 0."""

_BANK_PREFIX = "bank."

_WITHOUT_BANK = argument("flavours", ["slots", "inputs"])

Sizes = Mapping[int | str, int]
"""The length of every free axis of a graph, by its name there."""


@dataclass(frozen=True)
class BankRows:
    """The contents of a bank.

    Attributes:
        names: the adapter in each row; none is the base, in row 0.
        tensors: float32 [adapters, …] for each slot.
        masks: float32 [adapters, width] for each output of heads of several widths, to be added to it: 0, and `MASKED`
            beyond the width of the row's adapter.
    """

    names: tuple[str | None, ...]
    tensors: Weights
    masks: Weights


def bank_name(slot: str) -> str:
    """The tensor of a bank that holds a slot's tensors of all adapters."""
    return _BANK_PREFIX + slot.removeprefix(SLOT_PREFIX)


def mask_name(output: str) -> str:
    """The tensor of a bank that masks an output."""
    return f"{_BANK_PREFIX}{HEAD}.{output}.mask"


def bank_rows(plan: SlotPlan, heads: Sequence[HeadSum], adapters: Sequence[Adapter]) -> BankRows:
    """The base in row 0, then the adapters.

    Args:
        plan: the slots.
        heads: the outputs that heads fill.
        adapters: those of the bank, in order.

    Raises:
        AdapterError: an adapter cannot be filled up to the width of a wider one.
    """
    neutral = {group.slot(name): tensor for group in plan.groups for name, tensor in group.neutral().items()}
    filled = [neutral, *(slot_tensors(plan, adapter) for adapter in adapters)]
    sizes = _sizes(plan, heads, filled)
    for adapter, tensors in zip(adapters, filled[1:], strict=True):
        for group in plan.groups:
            _check_padding(group, adapter, tensors, sizes)
    stacked = {
        group.slot(name): np.stack([_padded(group, name, tensors[group.slot(name)], sizes) for tensors in filled])
        for group in plan.groups
        for name in group.graph.parameters
    }
    masks = {head.output: _mask(head, filled, sizes) for head in heads if isinstance(head.width, str)}
    return BankRows((None, *(adapter.name for adapter in adapters)), stacked, masks)


def _sizes(plan: SlotPlan, heads: Sequence[HeadSum], filled: Sequence[Weights]) -> Sizes:
    """Of every free axis the longest; heads of one output are equally wide."""
    sizes: dict[int | str, int] = {}
    for group in plan.groups:
        for name, axes in _axes(group).items():
            for tensors in filled:
                for axis, size in zip(axes, tensors[group.slot(name)].shape, strict=True):
                    sizes[axis] = max(size, sizes.get(axis, 1))
    for head in heads:
        if isinstance(head.width, str):
            names = [group.axis_name(group.result_width) for group in head.groups]
            sizes.update(dict.fromkeys(names, max(sizes.get(name, 1) for name in names)))
    return sizes


def _axes(group: SlotGroup) -> dict[str, tuple[int | str, ...]]:
    """The axes of each parameter, free ones by their names in the graph."""
    return {
        record.parameter: tuple(group.axis_name(axis, record.parameter) for axis in record.axes)
        for record in group.records()
    }


def _padded(group: SlotGroup, name: str, tensor: Array, sizes: Sizes) -> Array:
    """Zeros behind what is there, along every axis."""
    wanted = [sizes[axis] for axis in _axes(group)[name]]
    return np.pad(tensor, [(0, size - found) for size, found in zip(wanted, tensor.shape, strict=True)])


def _check_padding(group: SlotGroup, adapter: Adapter, tensors: Weights, sizes: Sizes) -> None:
    """Try out on random values whether a group computes the same from the wider tensors."""
    own = {name: tensors[group.slot(name)] for name in group.graph.parameters}
    wide = {name: _padded(group, name, tensor, sizes) for name, tensor in own.items()}
    if all(own[name].shape == wide[name].shape for name in own):
        return
    (_, expected), (_, found) = group.try_out(own), group.try_out(wide)
    kept = found[..., : expected.shape[-1]]
    if not np.allclose(kept, expected, rtol=1e-9, atol=1e-9) or found[..., expected.shape[-1] :].any():
        raise AdapterError(
            "an adapter cannot stand in a bank beside a wider one: zeros in its tensors change what it computes",
            where=f"adapter `{adapter.name}`, graph `{group.graph_name}` at `{group.owner}`",
            found=", ".join(f"`{name}` {list(own[name].shape)}" for name in own if own[name].shape != wide[name].shape),
            expected=", ".join(str(list(wide[name].shape)) for name in own if own[name].shape != wide[name].shape),
            fix=f"give the adapters one width, or build with {_WITHOUT_BANK}",
        )


def _mask(head: HeadSum, filled: Sequence[Weights], sizes: Sizes) -> Array:
    """A head lies idle where all its tensors are zero; without a busy one, nothing of the output means anything."""
    width = sizes[head.groups[0].axis_name(head.groups[0].result_width)]
    mask = np.zeros((len(filled), width), np.float32)
    for row, tensors in zip(mask, filled, strict=True):
        busy = [own for group in head.groups if (own := _own_width(group, tensors)) is not None]
        row[max(busy, default=width) :] = MASKED
    return mask


def _own_width(group: SlotGroup, tensors: Weights) -> int | None:
    own = {name: tensors[group.slot(name)] for name in group.graph.parameters}
    if not any(tensor.any() for tensor in own.values()):
        return None
    symbol = group.axis_name(group.result_width)
    widths = [
        size
        for name, axes in _axes(group).items()
        for axis, size in zip(axes, own[name].shape, strict=True)
        if axis == symbol
    ]
    return max(widths, default=None)


def insert_bank(base: OnnxBase, plan: SlotPlan, rows: BankRows) -> ir.Model:
    """The base's graph with a bank, and an input `adapter_ids`, int64 [batch]: the row of the bank for each row.

    An id that is no row of the bank is an error of ONNX Runtime; a negative one would count from the end otherwise.

    Raises:
        BaseModelError: the batch is not the first axis of every input, or of what an adapter reads, or as `insert`.
    """
    batch = _batch(base)
    _check_sites(base, plan, batch)
    return insert(base, plan, lambda graft: _RowBinding(graft, rows, batch))


def bank_tensors(plan: SlotPlan, heads: Sequence[HeadSum]) -> tuple[BankTensor, ...]:
    """The tensors of a bank, as the manifest lists them."""
    slots = [BankTensor(bank_name(slot.name), slot.name, (ADAPTERS_AXIS, *slot.axes)) for slot in plan.slots]
    masks = [
        BankTensor(mask_name(head.output), None, (ADAPTERS_AXIS, head.width))
        for head in heads
        if isinstance(head.width, str)
    ]
    return (*slots, *masks)


def _batch(base: OnnxBase) -> str:
    """The name of the first axis of all inputs: where it is another one, or a number, rows cannot be told apart."""
    first = {record.axes[0] if record.axes else None for record in base.inputs}
    batch = next(iter(first))
    if len(first) != 1 or not isinstance(batch, str):
        raise BaseModelError(
            "has no batch of any length as the first axis of all its inputs, which a bank needs",
            where=base.path,
            found=", ".join(f"`{record.name}` {list(record.axes)}" for record in base.inputs),
            fix=f"build with {_WITHOUT_BANK}",
        )
    return batch


def _check_sites(base: OnnxBase, plan: SlotPlan, batch: str) -> None:
    """Refuse sites whose first axis is known to be another one than the batch: each row there is no row of a request.

    Where nothing is known, and where all tokens are in one row, the golden vectors of a mixed batch decide.
    """
    values = {value.name: value for node in base.model.graph for value in node.outputs}
    others = {axis for record in base.inputs for axis in record.axes if isinstance(axis, str)} - {batch}
    for site in base.sites:
        for read in dict.fromkeys(
            name for group in plan.at(site.name) for name in (group.graph.replaces, *group.graph.inputs)
        ):
            value = values.get(getattr(site, read))
            shape = ir.Shape([]) if value is None or value.shape is None else value.shape
            first = shape[0] if len(shape) == _ROWS_APART else None
            if not site.sequence_first and (isinstance(first, int) or (first is not None and first.value in others)):
                raise BaseModelError(
                    "has no batch as the first axis where an adapter acts, so that a bank cannot tell rows apart",
                    where=f"site `{site.name}`, `{read}`",
                    found=str(shape),
                    expected=f"`{batch}` first",
                    fix=f"build with {_WITHOUT_BANK}",
                )


class _RowBinding(ParameterBinding):
    """Binds the parameters of adapters to rows of a bank, of the adapter of each row of the batch."""

    stacked = True

    def __init__(self, graft: Graft, rows: BankRows, batch: str) -> None:
        super().__init__(graft)
        self._rows = rows
        self._ids = graft.add_input(IDS_INPUT, ir.TensorType(ir.DataType.INT64), ir.Shape([batch]))
        self._checked: ir.Value | None = None
        self._gathered: dict[str, ir.Value] = {}

    def parameters(self, group: SlotGroup, writer: Writer, /) -> Mapping[str, ir.Value]:
        """[batch, in, out] for weights, [batch, 1, width] for vectors."""
        found = {}
        for record in group.records():
            axes = [group.axis_name(axis, record.parameter) for axis in record.axes]
            found[record.parameter] = self._gather(
                bank_name(record.name), self._rows.tensors[record.name], axes, writer
            )
        return found

    def enter(self, value: ir.Value, name: str, writer: Writer, /, *, sequence_first: bool = False) -> ir.Value:
        """[batch, tokens, width], of a value of the base that may have batch and tokens on one axis."""
        if value.shape is not None and len(value.shape) == _IN_ONE_ROW:
            integer = ir.TensorType(ir.DataType.INT64)
            batch = writer.op(f"{name}/batch", "Shape", (self._ids,), {"start": 0, "end": 1}, type=integer)
            rest = writer.op(f"{name}/width", "Shape", (value,), {"start": -1}, type=integer)
            tokens = writer.integers(f"{name}/tokens", [-1])
            leading = (tokens, batch) if sequence_first else (batch, tokens)
            shape = writer.op(f"{name}/shape", "Concat", (*leading, rest), {"axis": 0})
            value = writer.op(f"{name}/rows", "Reshape", (value, shape))
        return writer.op(f"{name}/batch_first", "Transpose", (value,), _SWAP) if sequence_first else value

    def leave(self, result: ir.Value, like: ir.Value, writer: Writer, /, *, sequence_first: bool = False) -> ir.Value:
        """In the order and the shape of the base's value."""
        if sequence_first:
            result = writer.op(f"{like.name}/sequence_first", "Transpose", (result,), _SWAP)
        if like.shape is None or len(like.shape) != _IN_ONE_ROW:
            return result
        shape = writer.op(f"{like.name}/shape", "Shape", (like,), type=ir.TensorType(ir.DataType.INT64))
        return writer.op(f"{like.name}/flat", "Reshape", (result, shape))

    def mask(self, mask: ir.Value, writer: Writer, /) -> ir.Value:
        """[batch, 1, tokens]."""
        return _unsqueezed(mask, "mask/row", writer)

    def head(self, head: HeadSum, result: ir.Value, writer: Writer, /) -> ir.Value:
        """The classes that a row's adapter does not have are masked; one value per row is [batch, width]."""
        if head.output in self._rows.masks:
            axes = [f"{head.output}.{head.width}"]
            mask = self._gather(mask_name(head.output), self._rows.masks[head.output], axes, writer)
            result = writer.op(f"{head.output}/masked", "Add", (result, mask))
        if head.result == "token_logits":
            return result
        return writer.op(f"{head.output}/pooled", "Squeeze", (result, writer.integers(f"{head.output}/axis", [1])))

    def _gather(self, name: str, data: np.ndarray, axes: Sequence[int | str], writer: Writer) -> ir.Value:
        """The rows of a tensor [adapters, …] of the bank, which is registered once; vectors as [batch, 1, width]."""
        if name not in self._gathered:
            free = [f"bank.{axis}" if isinstance(axis, str) else axis for axis in axes]
            tensor = self.graft.add_slot(name, ir.Shape([ADAPTERS_AXIS, *free]), ir.Tensor(data, name=name))
            rows = writer.op(f"{name}/rows", "Gather", (tensor, self._bank_rows(writer)), {"axis": 0})
            self._gathered[name] = _unsqueezed(rows, f"{name}/vectors", writer) if len(axes) == 1 else rows
        return self._gathered[name]

    def _bank_rows(self, writer: Writer) -> ir.Value:
        """The ids; a negative one becomes one that no bank has, instead of counting from the end."""
        if self._checked is None:
            boolean = ir.TensorType(ir.DataType.BOOL)
            zero, none = writer.integers(f"{IDS_INPUT}/zero", 0), writer.integers(f"{IDS_INPUT}/none", int(_NO_ROW))
            negative = writer.op(f"{IDS_INPUT}/negative", "Less", (self._ids, zero), type=boolean)
            self._checked = writer.op(f"{IDS_INPUT}/checked", "Where", (negative, none, self._ids), type=self._ids.type)
        return self._checked


def _unsqueezed(value: ir.Value, name: str, writer: Writer) -> ir.Value:
    """[batch, 1, …]."""
    return writer.op(name, "Unsqueeze", (value, writer.integers(f"{name}/axes", [1])))
