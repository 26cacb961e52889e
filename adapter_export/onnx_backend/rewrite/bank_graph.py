"""Bank: all adapters of a build in one graph, so that each row of a batch runs through its adapter.

The adapters are rows of tensors of one width: narrower ones are zero-padded, which does not change their results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, BaseModelError
from adapter_export.format.manifest import BankTensor
from adapter_export.graph.adapter import PREFIX, Adapter
from adapter_export.graph.compose.members import ROWS
from adapter_export.graph.tasks import PER_TOKEN
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.onnx_lowering import Writer
from adapter_export.onnx_backend.rewrite.insert import ParameterBinding, insert
from adapter_export.onnx_backend.rewrite.surgery import GraphRewrite
from adapter_export.onnx_backend.slots import (
    SLOT_PREFIX,
    HeadSum,
    PrefixSlots,
    SlotGroup,
    SlotPlan,
    adapter_head,
    head_records,
    slot_tensors,
)
from adapter_export.runtime.bank import RowLayout, mask_name
from adapter_export.words import argument

IDS_INPUT = "adapter_ids"

ADAPTERS_AXIS = "adapters"
"""First axis of every tensor of a bank; its length is free, like that of a bottleneck."""

_IN_ONE_ROW = 2
"""Number of axes of a value that has the tokens of all rows on one axis."""

_SWAP = {"perm": [1, 0, 2]}

_WITHOUT_BANK = argument("variants", ["slots", "inputs"])


@dataclass(frozen=True)
class BankRows:
    """Contents of a bank: the name of the adapter in each row, and the tensors, float32 [adapters, …].

    `None` is the base, in row 0. The tensors are those of `bank_tensors`.
    """

    names: tuple[str | None, ...]
    tensors: Weights


def bank_name(slot: str) -> str:
    """Return the name of the bank tensor with a slot's tensors of all adapters."""
    return f"bank.{slot.removeprefix(SLOT_PREFIX)}"


def bank_rows(plan: SlotPlan, heads: Sequence[HeadSum], adapters: Sequence[Adapter]) -> BankRows:
    """Put the base into row 0, followed by the adapters, zero-padded to one width; `AdapterError` if one cannot be."""
    layout = RowLayout(plan.slots, head_records(heads), bank_tensors(plan, heads))
    rows = [(slot_tensors(plan, adapter), adapter_head(heads, adapter)) for adapter in adapters]
    stacked = layout.stacked(rows)
    for adapter, (tensors, _) in zip(adapters, rows, strict=True):
        for group in plan.groups:
            weights = {name: tensors[group.slot(name)] for name in group.graph.parameters}
            shapes = {name: stacked[bank_name(group.slot(name))].shape[1:] for name in weights}
            if not _takes_zeros(group, weights, shapes):
                apart = [name for name in weights if weights[name].shape != shapes[name]]
                raise AdapterError(
                    "an adapter cannot share a bank with a wider one: zero-padding its tensors changes what it "
                    "computes",
                    where=f"adapter `{adapter.name}`, graph `{group.graph_name}` at `{group.owner}`",
                    found=", ".join(f"`{name}` {list(weights[name].shape)}" for name in apart),
                    expected=", ".join(str(list(shapes[name])) for name in apart),
                    fix="use adapters of equal width, or build with " + _WITHOUT_BANK,
                )
    return BankRows((None, *(adapter.name for adapter in adapters)), stacked)


def is_fillable(plan: SlotPlan) -> bool:
    """Return whether zero-padding the tensors of any adapter changes nothing: tested on random values.

    A norm over the bottleneck is a counterexample.
    """
    rng = np.random.default_rng(0)
    for group in {(group.key, *group.site_widths.items()): group for group in plan.groups}.values():
        narrow, wide = (  # even widths, for ops on one half of a bottleneck
            {**dict.fromkeys(group.graph.symbols(), width), ROWS: 1, **group.site_widths} for width in (2, 4)
        )
        shapes = group.graph.parameter_shapes(narrow)
        weights = {name: (0.2 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
        if not _takes_zeros(group, weights, group.graph.parameter_shapes(wide)):
            return False
    return True


def _takes_zeros(group: SlotGroup, weights: Weights, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether zero-padding a group's tensors to other shapes leaves its result on random values unchanged."""
    if all(weights[name].shape == shapes[name] for name in weights):
        return True
    padding = {
        name: [(0, size - length) for size, length in zip(shapes[name], weights[name].shape, strict=True)]
        for name in weights
    }
    _, expected = group.try_out(weights)
    _, actual = group.try_out({name: np.pad(tensor, padding[name]) for name, tensor in weights.items()})
    width = expected.shape[-1]
    # both are in float64, where only the order of summation may differ
    return np.allclose(actual[..., :width], expected, rtol=1e-9, atol=1e-9) and not actual[..., width:].any()


def insert_bank(base: OnnxBase, plan: SlotPlan, rows: BankRows) -> ir.Model:
    """Return the base's graph with a bank and an input `adapter_ids`, int64 [batch]: the bank row of each batch row.

    ONNX Runtime rejects an id that is not a row of the bank; negative ids are mapped to one, or they would count from
    the end.

    Raises:
        BaseModelError: the batch is not the first axis of every input or of an adapter's input, or as for `insert`.
    """
    batch = _batch(base)
    _check_sites(base, plan, batch)
    return insert(base, plan, lambda rewrite: _RowBinding(rewrite, rows, batch))


def bank_tensors(plan: SlotPlan, heads: Sequence[HeadSum]) -> tuple[BankTensor, ...]:
    """Return the tensors of a bank as listed in the manifest."""
    slots = [BankTensor(bank_name(slot.name), slot.name, (ADAPTERS_AXIS, *slot.axes)) for slot in plan.slots]
    open_heads = [head for head in heads if isinstance(head.width, str)]
    masks = [BankTensor(mask_name(head.output), None, (ADAPTERS_AXIS, head.width)) for head in open_heads]
    return (*slots, *masks)


def _batch(base: OnnxBase) -> str:
    """Return the name of the first axis of all inputs; raise if it differs between inputs or has a fixed length."""
    first = {record.axes[0] if record.axes else None for record in base.inputs}
    batch = next(iter(first))
    if len(first) != 1 or not isinstance(batch, str):
        raise BaseModelError(
            "lacks a dynamic batch as the first axis of all inputs, which a bank requires",
            where=base.path,
            found=", ".join(f"`{record.name}` {list(record.axes)}" for record in base.inputs),
            fix="build with " + _WITHOUT_BANK,
        )
    return batch


def _check_sites(base: OnnxBase, plan: SlotPlan, batch: str) -> None:
    """Reject sites whose first axis is known not to be the batch: rows there do not correspond to rows of a request.

    If the axis is unknown, or all tokens are in one row, golden vectors of a mixed batch decide.
    """
    values = {value.name: value for node in base.model.graph for value in node.outputs}
    others = {axis for record in base.inputs for axis in record.axes if isinstance(axis, str)} - {batch}
    for site in base.sites:
        graphs = [group.graph for group in plan.at(site.name)]
        for read in dict.fromkeys(name for graph in graphs for name in (graph.replaces, *graph.inputs)):
            value = values.get(getattr(site, read))
            shape = ir.Shape([]) if value is None or value.shape is None else value.shape
            first = shape[0] if len(shape) == 3 else None
            if not site.sequence_first and (isinstance(first, int) or (first is not None and first.value in others)):
                raise BaseModelError(
                    "the batch is not the first axis where an adapter acts, so a bank cannot separate rows",
                    where=f"site `{site.name}`, `{read}`",
                    found=str(shape),
                    expected=f"`{batch}` as the first axis",
                    fix="build with " + _WITHOUT_BANK,
                )


class _RowBinding(ParameterBinding):
    """Binds the parameters of adapters to rows of a bank, by the adapter of each row of the batch."""

    stacked = True

    def __init__(self, rewrite: GraphRewrite, rows: BankRows, batch: str) -> None:
        super().__init__(rewrite)
        self._rows, self._batch = rows, batch
        self._ids = rewrite.add_input(IDS_INPUT, ir.TensorType(ir.DataType.INT64), ir.Shape([batch]))
        self._checked: ir.Value | None = None
        self._gathered: dict[str, ir.Value] = {}
        self._tables: dict[str, ir.Value] = {}

    def parameters(self, group: SlotGroup, writer: Writer, /) -> Mapping[str, ir.Value]:
        """Return [batch, in, out] for weights, [batch, 1, width] for vectors, and whole tables of lookups.

        A table has a row for each token, and a request reads few of them.
        """
        tables = {node.parameters["weight"] for node in group.graph.nodes if node.op == "lookup"}
        tensors = {}
        for record in group.records():
            name, axes = bank_name(record.name), [group.axis_name(axis, record.parameter) for axis in record.axes]
            is_table = record.parameter in tables
            tensors[record.parameter] = self._table(name, axes) if is_table else self._gather(name, axes, writer)
        return tensors

    def rows(self, writer: Writer, /) -> ir.Value:
        """Return the row of each request in the bank, [batch]."""
        return self._bank_rows(writer)

    def enter(self, value: ir.Value, name: str, writer: Writer, /, *, sequence_first: bool = False) -> ir.Value:
        """Return [batch, tokens, width], from a value of the base that may have batch and tokens on one axis.

        Rows of an encoder that reads the windows of a file are those of the batch times the windows.
        """
        if self._has_other_rows(value, sequence_first=sequence_first):
            integer = ir.TensorType(ir.DataType.INT64)
            batch = writer.op(f"{name}/batch", "Shape", (self._ids,), {"start": 0, "end": 1}, type=integer)
            rest = writer.op(f"{name}/width", "Shape", (value,), {"start": -1}, type=integer)
            tokens = writer.integers(f"{name}/tokens", [-1])
            leading = (tokens, batch) if sequence_first else (batch, tokens)
            shape = writer.op(f"{name}/shape", "Concat", (*leading, rest), {"axis": 0})
            value = writer.op(f"{name}/rows", "Reshape", (value, shape))
        return writer.op(f"{name}/batch_first", "Transpose", (value,), _SWAP) if sequence_first else value

    def leave(self, result: ir.Value, like: ir.Value, writer: Writer, /, *, sequence_first: bool = False) -> ir.Value:
        """Return the result in the order and shape of the base's value."""
        if sequence_first:
            result = writer.op(f"{like.name}/sequence_first", "Transpose", (result,), _SWAP)
        if not self._has_other_rows(like, sequence_first=sequence_first):
            return result
        shape = writer.op(f"{like.name}/shape", "Shape", (like,), type=ir.TensorType(ir.DataType.INT64))
        # by default, a length 0 is one that stays: an encoder has no rows after the first call for a text
        options = {} if like.shape is None or len(like.shape) == _IN_ONE_ROW else {"allowzero": 1}
        return writer.op(f"{like.name}/flat", "Reshape", (result, shape), options)

    def _has_other_rows(self, value: ir.Value, *, sequence_first: bool) -> bool:
        """Return whether the first axis of a value is not the batch, or combines it with tokens or windows."""
        if value.shape is None or len(value.shape) == _IN_ONE_ROW:
            return value.shape is not None
        first = value.shape[0]
        return not sequence_first and isinstance(first, ir.SymbolicDim) and first.value not in (None, self._batch)

    def mask(self, mask: ir.Value, writer: Writer, /) -> ir.Value:
        """Return the mask as [batch, 1, tokens]."""
        return _unsqueeze(mask, "mask/row", writer)

    def head(self, head: HeadSum, result: ir.Value, writer: Writer, /) -> ir.Value:
        """Mask the classes that a row's adapter lacks; a result with one value per row becomes [batch, width]."""
        if isinstance(head.width, str):
            mask = self._gather(mask_name(head.output), [f"{head.output}.{head.width}"], writer)
            result = writer.op(f"{head.output}/masked", "Add", (result, mask))
        if head.result in PER_TOKEN:
            return result
        return writer.op(f"{head.output}/pooled", "Squeeze", (result, writer.integers(f"{head.output}/axis", [1])))

    def prefix(self, slots: PrefixSlots, writer: Writer, /) -> Mapping[str, ir.Value]:
        """Return the length [batch, 1, 1], and keys and values of each row."""
        tensors = {}
        for record in slots.records():
            axes = [f"{PREFIX}.{axis}" if isinstance(axis, str) else axis for axis in record.axes]
            tensors[record.name] = self._gather(bank_name(record.name), axes, writer)
        return tensors

    def _gather(self, name: str, axes: Sequence[int | str], writer: Writer) -> ir.Value:
        """Gather rows of a bank tensor [adapters, …]; vectors as [batch, 1, width]."""
        if name not in self._gathered:
            rows = writer.op(f"{name}/rows", "Gather", (self._table(name, axes), self._bank_rows(writer)), {"axis": 0})
            self._gathered[name] = _unsqueeze(rows, f"{name}/vectors", writer) if len(axes) == 1 else rows
        return self._gathered[name]

    def _table(self, name: str, axes: Sequence[int | str]) -> ir.Value:
        """Return a bank tensor [adapters, …], which is registered once."""
        if name not in self._tables:
            free = [f"bank.{axis}" if isinstance(axis, str) else axis for axis in axes]
            default = ir.Tensor(self._rows.tensors[name], name=name)
            self._tables[name] = self.rewrite.add_slot(name, ir.Shape([ADAPTERS_AXIS, *free]), default)
        return self._tables[name]

    def _bank_rows(self, writer: Writer) -> ir.Value:
        """Return the ids; a negative one becomes an id that no bank has, instead of counting from the end."""
        if self._checked is None:
            boolean = ir.TensorType(ir.DataType.BOOL)
            zero = writer.integers(f"{IDS_INPUT}/zero", 0)
            none = writer.integers(f"{IDS_INPUT}/none", int(np.iinfo(np.int64).max))
            negative = writer.op(f"{IDS_INPUT}/negative", "Less", (self._ids, zero), type=boolean)
            self._checked = writer.op(f"{IDS_INPUT}/checked", "Where", (negative, none, self._ids), type=self._ids.type)
        return self._checked


def _unsqueeze(value: ir.Value, name: str, writer: Writer) -> ir.Value:
    """Return the value as [batch, 1, …]."""
    return writer.op(name, "Unsqueeze", (value, writer.integers(f"{name}/axes", [1])))
