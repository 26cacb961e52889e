"""Uses of an ONNX graph's weights in order of evaluation: floats, and integers in blocks with scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.numerics.weight_match import StoredRows, WeightUse
from adapter_export.onnx_backend.base import operators
from adapter_export.onnx_backend.base.external import readable
from adapter_export.onnx_backend.base.flow import activations_of

_POSITION_TABLES = {"GroupQueryAttention": (7, 8), "SparseAttention": (7, 8), "RotaryEmbedding": (2, 3)}
"""Inputs of com.microsoft's operators for cosines and sines of positions, which are not trained."""

_PACKED = frozenset({"MatMulNBits", "GatherBlockQuantized"})
"""Operators that read integers in blocks, scales and zero points, and dequantize them."""

_UNIT_ROUNDOFF = {
    ir.DataType.DOUBLE: 2.0**-53,
    ir.DataType.FLOAT: 2.0**-24,
    ir.DataType.FLOAT16: 2.0**-11,
    ir.DataType.BFLOAT16: 2.0**-8,
}
"""Largest relative error of rounding to a type: half the distance from 1 to the next number."""

_ROUNDINGS = 4
"""Roundings before a number becomes an integer: of the weight, the scale, its reciprocal, the product and the sum with
the zero point; the weight's is no larger than that of the scale."""

_Array = npt.NDArray[Any]


def weight_uses(model: ir.Model) -> list[WeightUse]:
    """Return each use of a weight by a node that computes activations, in the order of the graph.

    Scalars, and cosines and sines of positions, are not weights.

    Raises:
        BaseModelError: a weight is stored in an unsupported way.
    """
    activations = activations_of(model.graph)
    computing = [node for node in model.graph if any(value.name in activations for value in node.outputs)]
    return [use for node in computing for use in _uses(node, activations)]


def _uses(node: ir.Node, activations: Set[str]) -> Iterator[WeightUse]:
    skipped: tuple[int, ...] = _POSITION_TABLES.get(node.op_type, ())
    if node.op_type in _PACKED:
        yield _packed(node)
        skipped = (0, 1, 2, 3)
    for at, value in enumerate(node.inputs):
        if value is None or value.name in activations or at in skipped:
            continue
        source = _source(value, node)
        if source is not None:
            is_columns = at == 1 and node.op_type in operators.FACTORS and not node.attributes.get_int("transB", 0)
            yield _floats(source, flipped=is_columns != source.transposed, is_factor=_is_factor(node, at))


def _is_factor(node: ir.Node, at: int) -> bool:
    """Return whether an input is the factor of a norm."""
    return (node.op_type in operators.NORMS and at == 1) or (operators.is_skip_norm(node) and at == operators.SUMMANDS)


@dataclass(frozen=True)
class _Source:
    """Tensor of an operand, whether it is transposed on the way, and the node that dequantizes it."""

    value: ir.Value
    tensor: ir.TensorProtocol
    transposed: bool
    dequantized: ir.Node | None


def _source(value: ir.Value, reader: ir.Node) -> _Source | None:
    """Follow an operand back to its weight; `None` if it has no floats except scalars."""
    transposed, dequantized, source = False, None, value
    while (tensor := ir.convenience.get_const_tensor(source)) is None:
        node = source.producer()
        if node is None or node.op_type not in ("Transpose", "Cast", "Identity", "DequantizeLinear"):
            if _holds_floats(source):
                raise _unreadable(value.name, f"`{node.op_type if node else 'an input'}` before `{reader.op_type}`")
            return None
        if node.op_type == "Transpose":
            transposed = not transposed
        elif node.op_type == "DequantizeLinear":
            dequantized = node
        before = node.inputs[0]
        assert before is not None  # a required input of these operators
        source = before
    is_weight = tensor.size > 1 and (dequantized is not None or tensor.dtype.is_floating_point())
    return _Source(source, tensor, transposed, dequantized) if is_weight else None


def _holds_floats(value: ir.Value) -> bool:
    """Return whether a value is computed from constant float arrays."""
    waiting, seen = [value], {value}
    while waiting:
        source = waiting.pop()
        tensor = ir.convenience.get_const_tensor(source)
        if tensor is not None and tensor.size > 1 and tensor.dtype.is_floating_point():
            return True
        node = source.producer()
        read = () if node is None or node.op_type in ("Shape", "Size") else node.inputs
        waiting += [each for each in read if each is not None and each not in seen]
        seen.update(waiting)
    return False


def _unreadable(name: str | None, reason: str) -> BaseModelError:
    return BaseModelError(
        "has a weight that cannot be compared with a trained one",
        where=f"`{name}`",
        found=reason,
        expected="floats, or integers in blocks along the input with a scale each",
    )


def _array(value: ir.Value | None) -> _Array | None:
    """Return a constant of any layout; large ones stay on disk."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else readable(tensor).numpy()


def _floats(source: _Source, *, flipped: bool, is_factor: bool) -> WeightUse:
    """Return a use of a weight as [out, in]; `flipped` if it is stored as [in, out]."""
    name, tensor = source.value.name or "", source.tensor
    shape = tensor.shape.numpy()
    if max(shape) == tensor.size:  # a vector, possibly with axes of length 1
        vector = _reader(lambda: readable(tensor).numpy().reshape(-1, 1), tensor.dtype)
        is_neutral = is_factor and bool((readable(tensor).numpy() == 1).all())
        return WeightUse(name, tensor.size, None, vector, _words(tensor.dtype), is_neutral)
    width = shape[-2] if flipped else shape[-1]
    rows = tensor.size // width

    def laid_out(array: _Array) -> _Array:
        return (array.swapaxes(-1, -2) if flipped else array).reshape(-1, array.shape[-2 if flipped else -1])

    if source.dequantized is None:
        return WeightUse(
            name, rows, width, _reader(lambda: laid_out(readable(tensor).numpy()), tensor.dtype), _words(tensor.dtype)
        )
    blocks = _dequantized(source, name, laid_out, along_rows=flipped)
    return WeightUse(name, rows, width, blocks.read, blocks.words)


def _words(dtype: ir.DataType) -> str:
    return dtype.numpy().name


def _reader(whole: Callable[[], _Array], dtype: ir.DataType) -> Callable[[int, int], StoredRows]:
    """Return a reader of float rows, with half of their type's spacing as rounding."""

    def read(start: int, end: int) -> StoredRows:
        stored = whole()[start:end]
        values = stored.astype(np.float32)
        if dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
            return StoredRows(values, np.zeros((1, 1), np.float32))
        # use magnitudes: `spacing` of a negative power of two is the smaller distance, towards zero
        return StoredRows(values, np.spacing(np.abs(stored)).astype(np.float32) / np.float32(2))

    return read


@dataclass(frozen=True)
class _Blocks:
    """Integers in blocks along the last axis, with a scale and optionally a zero point per block.

    Attributes:
        bits: bits per integer.
        block: number of integers per scale.
        least: smallest integer that can be stored.
        integers: returns the integers of some rows, [rows, width].
        scales: [rows, blocks].
        zeros: [rows, blocks], or one for all.
        dtype: type of the scales.
    """

    bits: int
    block: int
    least: int
    integers: Callable[[int, int], _Array]
    scales: _Array
    zeros: _Array
    dtype: ir.DataType

    @property
    def words(self) -> str:
        return f"int{self.bits} in blocks of {self.block}"

    def read(self, start: int, end: int) -> StoredRows:
        """Dequantize some rows."""
        integers = self.integers(start, end).astype(np.float32)  # exact up to 8 bits
        width, most = integers.shape[1], self.least + 2**self.bits - 1
        scales = self._spread(self.scales[start:end], width)
        steps = integers - self._spread(self.zeros[start:end] if len(self.zeros) > 1 else self.zeros, width)
        of_zero_point = 2**self.bits * _UNIT_ROUNDOFF[ir.DataType.FLOAT]  # quantizers compute in float32
        slack = _ROUNDINGS * (np.abs(steps) * np.float32(_UNIT_ROUNDOFF[self.dtype]) + np.float32(of_zero_point))
        outward = (integers == most).astype(np.int8) - (integers == self.least).astype(np.int8)
        return StoredRows(
            steps * scales, np.abs(scales) * (np.float32(0.5) + slack), outward * np.sign(scales).astype(np.int8)
        )

    def _spread(self, of_blocks: _Array, width: int) -> npt.NDArray[np.float32]:
        """Repeat the number of each block for its integers; the last block may be shorter."""
        return np.repeat(of_blocks.astype(np.float32), self.block, axis=1)[:, :width]


def _packed(node: ir.Node) -> WeightUse:
    """Return the weight of an operator that dequantizes blocks itself, such as `MatMulNBits`."""
    is_table = node.op_type == "GatherBlockQuantized"
    places = (0, 2, 3) if is_table else (1, 2, 3)
    read = [_behind_reshape(node.inputs[at]) if at < len(node.inputs) else None for at in places]
    data, of_scales, of_zeros = (None if value is None else ir.convenience.get_const_tensor(value) for value in read)
    name = "" if read[0] is None else read[0].name or ""
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 128 if is_table else 0)
    axes = (node.attributes.get_int("gather_axis", 0), node.attributes.get_int("quantize_axis", 1))
    ordered = any(value is not None for value in node.inputs[4:5])  # `g_idx`, the order of columns in MatMulNBits
    prepacked = node.attributes.get_int("weight_prepacked", 0) != 0
    if (
        data is None
        or of_scales is None
        or bits not in (2, 4, 8)
        or ordered
        or prepacked
        or (is_table and axes != (0, 1))
    ):
        raise _unreadable(name, f"`{node.op_type}` with {bits} bits in another layout")
    rows, is_bytes = int(data.shape.numpy()[0]), data.dtype == ir.DataType.UINT8
    width = node.attributes.get_int("K", 0) or data.size // rows * (8 // bits if is_bytes else 1)

    def by_row(tensor: ir.TensorProtocol) -> _Array:
        if tensor.size % rows:
            raise _unreadable(tensor.name, f"{tensor.size} numbers")
        return readable(tensor).numpy().reshape(rows, -1)

    def integers(start: int, end: int) -> _Array:
        part = by_row(data)[start:end]
        return (_unpacked(part, bits) if is_bytes else part)[:, :width]

    scales = by_row(of_scales)
    zeros = np.full((1, scales.shape[1]), 2 ** (bits - 1) if is_bytes else 0)
    if of_zeros is not None:
        zeros = by_row(of_zeros)
        if of_zeros.dtype == ir.DataType.UINT8 and is_bytes:
            zeros = _unpacked(zeros, bits)[:, : scales.shape[1]]
    if block < 1 or zeros.shape[1] != scales.shape[1] or scales.shape[1] * block < width:
        raise _unreadable(name, f"{scales.shape[1]} scales and {zeros.shape[1]} zero points per row of {width}")
    least = 0 if data.dtype in (ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.UINT2) else -(2 ** (bits - 1))
    blocks = _Blocks(bits, block, least, integers, scales, zeros, of_scales.dtype)
    return WeightUse(name, rows, width, blocks.read, blocks.words)


def _behind_reshape(value: ir.Value | None) -> ir.Value | None:
    """Return the input of a reshape, which the builder writes between a shared table and its reader."""
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and node.op_type == "Reshape" else value


def _unpacked(data: _Array, bits: int) -> _Array:
    """Return the integers packed in bytes [rows, bytes], the lowest bits first."""
    if bits == 8:
        return data
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((data[..., None] >> shifts) & np.uint8(2**bits - 1)).reshape(len(data), -1)


def _dequantized(source: _Source, name: str, laid_out: Callable[[_Array], _Array], *, along_rows: bool) -> _Blocks:
    """Return the blocks that a `DequantizeLinear` dequantizes, laid out along the last axis."""
    node, dtype = source.dequantized, source.tensor.dtype
    assert node is not None
    rank = len(source.tensor.shape)
    axis, block = node.attributes.get_int("axis", 1) % rank, node.attributes.get_int("block_size", 0)
    scales = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
    bits = {"INT4": 4, "UINT4": 4, "INT8": 8, "UINT8": 8}.get(dtype.name)
    if scales is None or bits is None or block < 1 or axis != rank - (2 if along_rows else 1):
        raise _unreadable(name, f"`DequantizeLinear` of {_words(dtype)} along axis {axis}, in blocks of {block}")
    of_scales = laid_out(readable(scales).numpy())
    zeros = _array(node.inputs[2] if len(node.inputs) > 2 else None)
    return _Blocks(
        bits,
        block,
        -(2 ** (bits - 1)) if dtype.name.startswith("INT") else 0,
        lambda start, end: laid_out(readable(source.tensor).numpy())[start:end],
        of_scales,
        np.zeros((1, of_scales.shape[1])) if zeros is None else laid_out(zeros),
        scales.dtype,
    )
