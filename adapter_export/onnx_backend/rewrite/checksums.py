"""Checksums of slots: an additional output of a graph that shows which tensors it received.

The checksum of a tensor is an integer below a prime: each element as a multiple of 2^-30, times its position along each
    axis, counted from 1, summed modulo the prime. docs/reference/format.md specifies it. Every step is exact in its
    type, so all runtimes and all orders of summation produce the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import Weights
from adapter_export.format.manifest import Axis, BankRecord, InputRecord, SlotRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.budget import Budget
from adapter_export.onnx_backend.base.length_probe import axes
from adapter_export.onnx_backend.onnx_lowering import Writer
from adapter_export.onnx_backend.rewrite.surgery import NODE_SITE_KEY, GraphRewrite
from adapter_export.onnx_backend.slots import SLOT_PREFIX, SlotPlan, slot_tensors

CHECKSUMS = "slot_checksums"
"""Name of the output, unless the base or a head has an output with this name."""

EXACT_CHECKSUM = Budget(0.0, "checksums are compared exactly")

_PRIME = 8388593
"""A prime below 2^23: float32 represents all integers up to it."""

_LARGEST = 2.0**22
_SCALE = 2.0**30
"""Elements are clipped to ±2^22, so that a multiple of 2^-30 is at most 2^52."""

_LONGEST = 46340
"""Longest axis that float64 sums exactly: numbers below 2^23 times their positions stay within 2^53."""

_LONGEST_INTEGER = 2**20
"""Longest axis of integers whose sums fit into int64, below 2^63."""

_OWNER = "checksums"

_FLOAT = ir.TensorType(ir.DataType.FLOAT)
_DOUBLE = ir.TensorType(ir.DataType.DOUBLE)
_INTEGER = ir.TensorType(ir.DataType.INT64)


@dataclass(frozen=True)
class SlotChecksums:
    """Checksums that the graphs of a bundle must return.

    Attributes:
        output: name of the output.
        plan: plan of the slots.
        inputs: data inputs; the first one with an axis counts the rows.
    """

    output: str
    plan: SlotPlan
    inputs: Sequence[InputRecord]

    def expected(self, adapter: Adapter | None, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the output, float32 [batch, slots], for data inputs and an adapter; `None` is the base.

        Raises:
            AdapterError: the plan has no slots for the adapter.
        """
        tensors: Weights = (
            {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in self.plan.slots}
            if adapter is None
            else slot_tensors(self.plan, adapter)
        )
        row = np.array([checksum(tensors[slot.name]) for slot in self.plan.slots], np.float32)
        counting = counting_input(self.inputs)
        return {self.output: np.tile(row, (1 if counting is None else len(arrays[counting.name]), 1))}


def checksum(tensor: np.ndarray) -> int:
    """Return the checksum of a tensor."""
    clipped = np.clip(tensor.astype(np.float64), -_LARGEST, _LARGEST)
    left = np.round(clipped * _SCALE).astype(np.int64) % _PRIME
    while left.ndim:
        products = left * np.arange(1, left.shape[-1] + 1) % _PRIME
        left = np.asarray(products.sum(-1) % _PRIME)
    return int(left)


def counting_input(inputs: Sequence[InputRecord]) -> InputRecord | None:
    """Return the data input whose first axis counts the rows of the checksums; `None` if no input has an axis."""
    return next((record for record in inputs if record.axes), None)


def add_checksums(model: ir.Model, slots: Sequence[SlotRecord], output: str, inputs: Sequence[InputRecord]) -> ir.Model:
    """Return a copy of a graph with slots that outputs the checksums; all its rows are equal.

    They are computed directly from the slots, without changing the nodes of adapters.
    """
    rewrite = GraphRewrite(model)
    writer, counting = _writer(rewrite), counting_input(inputs)
    sources = {slot.name: rewrite.value(slot.name) for slot in slots}
    row = _Summing(writer, sources, sources, 0).all(slots)
    rows: Axis = 1 if counting is None else counting.axes[0]
    count = writer.integers("rows", [1])
    if counting is not None:
        count = writer.op("rows/batch", "Shape", (rewrite.value(counting.name),), {"start": 0, "end": 1}, _INTEGER)
    shape = writer.op("shape", "Concat", (count, writer.integers("slots", [len(slots)])), {"axis": 0})
    _append(rewrite, writer, writer.op("rows/equal", "Expand", (row, shape)), output, [rows, len(slots)])
    return rewrite.model


def add_bank_checksums(model: ir.Model, slots: Sequence[SlotRecord], output: str, bank: BankRecord) -> ir.Model:
    """Return a copy of the graph of a bank that outputs the checksums: in each row those of its adapter.

    They are computed from the rows that the graph gathers for the nodes of adapters; those of tables of lookups, of
    which the nodes of adapters read only some tokens, are gathered for them.
    """
    rewrite = GraphRewrite(model)
    sources = {tensor.slot: rewrite.value(tensor.name) for tensor in bank.tensors if tensor.slot is not None}
    writer, ids = _writer(rewrite), rewrite.value(bank.ids)
    gathered = {}
    for slot, source in sources.items():
        (node,) = {node for node, _ in source.uses()}  # one `Gather`, shared by all readers
        is_whole = node.op_type == "Gather"
        gathered[slot] = node.outputs[0] if is_whole else writer.op(f"{slot}/rows", "Gather", (source, ids))
    (rows,) = axes(ids)
    _append(rewrite, writer, _Summing(writer, sources, gathered, 1).all(slots), output, [rows, len(slots)])
    return rewrite.model


def without_checksums(model: ir.Model, output: str) -> ir.Model:
    """Return a copy of a graph without its checksums."""
    copy = model.clone()
    copy.graph.outputs[:] = [value for value in copy.graph.outputs if value.name != output]
    checksum_nodes = [node for node in copy.graph if node.metadata_props.get(NODE_SITE_KEY) == _OWNER]
    copy.graph.remove(checksum_nodes, safe=True)
    return copy


def _writer(rewrite: GraphRewrite) -> Writer:
    opset = rewrite.model.opset_imports[""]
    return Writer(ir.tape.Tape(), f"{SLOT_PREFIX}{_OWNER}", opset, {NODE_SITE_KEY: _OWNER})


def _append(rewrite: GraphRewrite, writer: Writer, value: ir.Value, output: str, shape: Sequence[Axis]) -> None:
    rewrite.vacate(output)  # rename an inner value of the base with this name
    rewrite.append_output(writer.tape, value, output, ir.Shape(shape))


@dataclass
class _Summing:
    """Writes the nodes that compute checksums.

    Attributes:
        writer: writes the nodes.
        sources: by slot, the input of the graph with the slot's axes.
        tensors: by slot, the value to compute the checksum of.
        leading: number of axes before those of the slot: 1 in a bank.
    """

    writer: Writer
    sources: Mapping[str, ir.Value]
    tensors: Mapping[str, ir.Value]
    leading: int
    _known: dict[str, ir.Value] = field(default_factory=dict)

    def all(self, slots: Sequence[SlotRecord]) -> ir.Value:
        """Write the checksums, float32 [slots] or [batch, slots]."""
        joined = self.writer.op("sums", "Concat", [self._sum(slot) for slot in slots], {"axis": -1})
        return self.writer.op("result", "Cast", (self._rest("rests", joined),), {"to": _FLOAT.dtype}, _FLOAT)

    def _sum(self, slot: SlotRecord) -> ir.Value:
        """Write the checksum of a slot before the last remainder, int64 [1] or [batch, 1]."""
        name, write, left = slot.name.removeprefix(SLOT_PREFIX), self.writer.op, list(range(len(slot.axes)))
        # float32 is exact here: a power of two changes only the exponent, and there are no fractions from 2^23 on
        limits = (self._number("least", np.float32(-_LARGEST)), self._number("most", np.float32(_LARGEST)))
        value = write(f"{name}/clipped", "Clip", (self.tensors[slot.name], *limits))
        value = write(f"{name}/scaled", "Mul", (value, self._number("scale", np.float32(_SCALE))))
        value = write(f"{name}/whole", "Round", (value,))
        short = [axis for axis in left[-2:] if _length(slot, axis) <= _LONGEST]
        if len(left) > 1 and short:  # sum most elements in float64, which is several times faster than int64
            value = self._near_rest(name, write(f"{name}/wide", "Cast", (value,), {"to": _DOUBLE.dtype}, _DOUBLE))
            positions = self._positions(slot, short[-1], _DOUBLE)
            pair = (value, positions) if short[-1] == left[-1] else (positions, value)
            value = write(f"{name}/products", "MatMul", pair)
            left.remove(short[-1])
        value = write(f"{name}/integers", "Cast", (value,), {"to": _INTEGER.dtype}, _INTEGER)
        value = self._rest(f"{name}/rests", value)
        for axis in reversed(left):
            at = f"{name}/axis_{axis}"
            value = write(f"{at}/products", "Mul", (value, self._positions(slot, axis, _INTEGER)))
            if _length(slot, axis) > _LONGEST_INTEGER:
                value = self._rest(f"{at}/product_rests", value)
            last = self._number("last", np.array([-1]))
            value = write(f"{at}/sum", "ReduceSum", (value, last), {"keepdims": int(axis == left[0])})
            if axis != left[0]:
                value = self._rest(f"{at}/rests", value)
        return value if left else write(f"{name}/vector", "Unsqueeze", (value, self._number("last", np.array([-1]))))

    def _rest(self, name: str, value: ir.Value) -> ir.Value:
        return self.writer.op(name, "Mod", (value, self._number("prime", np.int64(_PRIME))))

    def _near_rest(self, name: str, value: ir.Value) -> ir.Value:
        """Write numbers of at most the prime that are congruent to float64 numbers of at most 2^52.

        `Mod` of floats calls `fmod` for each element. Its quotient is at most 2^29, so the rounding of it, and of the
        reciprocal, is less than 1 / prime, and the product with the prime is exact.
        """
        write, prime = self.writer.op, self._number("wide_prime", np.float64(_PRIME))
        quotient = write(f"{name}/quotient", "Mul", (value, self._number("reciprocal", np.float64(1 / _PRIME))))
        whole = write(f"{name}/whole_quotient", "Floor", (quotient,))
        return write(f"{name}/near_rest", "Sub", (value, write(f"{name}/multiple", "Mul", (whole, prime))))

    def _positions(self, slot: SlotRecord, axis: int, type: ir.TensorType) -> ir.Value:
        """Write 1, 2, … up to the length of an axis; axes with one name in a graph have one length."""
        source, at = self.sources[slot.name], self.leading + axis
        length = axes(source)[at]
        name = f"positions/{length}"
        if name not in self._known:
            unit = self._number("one", np.int64(1))
            if isinstance(length, int):
                end = self.writer.integers(f"{name}/end", length + 1)
            else:
                shape = self.writer.op(f"{name}/length", "Shape", (source,), {"start": at, "end": at + 1}, _INTEGER)
                end = self.writer.op(
                    f"{name}/end", "Add", (self.writer.op(f"{name}/scalar", "Squeeze", (shape,)), unit)
                )
            self._known[name] = self.writer.op(name, "Range", (unit, end, unit), type=_INTEGER)
        if type is _INTEGER:
            return self._known[name]
        wide = f"{name}/wide"
        if wide not in self._known:
            self._known[wide] = self.writer.op(wide, "Cast", (self._known[name],), {"to": type.dtype}, type)
        return self._known[wide]

    def _number(self, name: str, value: np.generic | np.ndarray) -> ir.Value:
        if name not in self._known:
            self._known[name] = self.writer.constant(name, ir.tensor(np.asarray(value)))
        return self._known[name]


def _length(slot: SlotRecord, axis: int) -> float:
    """Return the maximum length of an axis of a slot; infinite if each adapter may choose it."""
    length = slot.axes[axis]
    return length if isinstance(length, int) else np.inf
