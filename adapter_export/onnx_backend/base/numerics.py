"""In which precision a graph computes, read off its operators, whoever made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from adapter_export.dtypes import Stored
from adapter_export.format.manifest import Precision

_DYNAMIC = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention"})
"""Each takes one scale for a whole activation, [batch, tokens, d], when it runs: the rows of a batch share it."""

_INTEGER = frozenset({"MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm"})
"""Products of activations that are rounded to 8 bits."""

_BLOCKWISE = "MatMulNBits"
_INT8_ACCURACY = 4
"""The accuracy level at which `MatMulNBits` rounds its activations to 8 bits, block by block of one row."""

_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)
_PACKED = {ir.DataType.INT8: 8, ir.DataType.UINT8: 8, ir.DataType.INT4: 4, ir.DataType.UINT4: 4}


@dataclass(frozen=True)
class Numerics:
    """The precision in which a graph computes.

    Attributes:
        precision: of its products.
        stored: the coarsest type that activations are rounded to on their way.
        batch_invariant: whether a row's result is the same in any batch, rounding aside.
        int8_tables: whether rows are looked up in a table of 8 bits: embeddings.
    """

    precision: Precision
    stored: Stored
    batch_invariant: bool
    int8_tables: bool


def numerics(model: ir.Model) -> Numerics:
    """Read off a graph how it computes; a graph of mixed precisions counts as its coarsest."""
    nodes = list(model.graph.all_nodes())
    ops = {node.op_type for node in nodes}
    integer = not ops.isdisjoint(_DYNAMIC | _INTEGER)
    rounds = integer or any(
        node.op_type == _BLOCKWISE and node.attributes.get_int("accuracy_level", 0) == _INT8_ACCURACY for node in nodes
    )
    weights = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    half = any(tensor is not None and tensor.dtype == ir.DataType.FLOAT16 for tensor in weights)
    bits = min((found for node in nodes for found in _weight_bits(node)), default=None)
    floats: Precision = "fp16" if half else "fp32"
    packed: Precision = "int8-weights" if bits is not None and bits > 4 else "int4-weights"
    return Numerics(
        precision="int8" if integer else floats if bits is None else packed,
        stored="uint8" if rounds else "float16" if half else "float32",
        batch_invariant=ops.isdisjoint(_DYNAMIC),
        int8_tables=any(node.op_type == "Gather" and _dtype_of_first(node) in _BYTES for node in nodes),
    )


def _weight_bits(node: ir.Node) -> Iterator[int]:
    """The bits of a weight that is unpacked for a product; a table that is looked up is none."""
    if node.op_type == _BLOCKWISE:
        yield node.attributes.get_int("bits", 4)
    elif node.op_type == "DequantizeLinear" and (dtype := _dtype_of_first(node)) is not None:
        yield _PACKED.get(dtype, 8)


def _dtype_of_first(node: ir.Node) -> ir.DataType | None:
    """The dtype of the first input of a node, if that is a weight."""
    tensor = None if node.inputs[0] is None else node.inputs[0].const_value
    return None if tensor is None else tensor.dtype
