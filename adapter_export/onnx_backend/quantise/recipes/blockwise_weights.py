"""Weights of 8 or 4 bits in blocks of a column, by ONNX Runtime's quantizer for `MatMulNBits`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

from adapter_export.format.precision import Precision, PrecisionName
from adapter_export.onnx_backend.base.weight_file import WeightFile, array_of, columns_of, register
from adapter_export.onnx_backend.quantise.graph_edits import (
    add_node,
    constant_matrix,
    drop_unused_weights,
    expose_matrices,
    multiply,
    quantize_tables,
    replace_node,
    tensor_of,
)
from adapter_export.onnx_backend.quantise.recipes import Recipe

_FLOAT32_LEVEL, _INT8_LEVEL = 1, 4
"""Accuracy levels of `MatMulNBits` for activations. Without one, machines differ too much."""

_SMALLEST_BLOCK, _LARGEST_BLOCK = 32, 64
"""Block sizes of `MatMulNBits`: the most accurate, and the fastest with 8-bit activations.

With larger blocks (with 4 bits, above 32), tokens are multiplied in pairs and the last of an odd number by another
kernel; after rounding to 8 bits, that difference moves a token by one percent."""

_QUANTISER_LOG = "%(asctime)s %(name)s [%(levelname)s] - %(message)s"

# undo the quantizer's `basicConfig` on import, or all libraries would log through it
for _handler in [each for each in logging.root.handlers if each.formatter and each.formatter._fmt == _QUANTISER_LOG]:
    logging.root.removeHandler(_handler)
    logging.root.setLevel(logging.WARNING)


def _weights(model: ir.Model, precision: Precision, weights: WeightFile, *, bits: int) -> ir.Model:
    """Quantize weights in blocks; activations to 8 bits, too, in blocks of one token, unless they are float32.

    Tied embeddings are one table that a language head transposes. In float32, both uses share it; in 8 bits, the head
    is quantized like any other product, from the original floats.
    """
    expose_matrices(model, behind_transposes=precision.embeddings == "int8")
    is_exact = precision.activations == "float32"
    products = [node for node in model.graph.all_nodes() if constant_matrix(_factor(node)) is not None]
    quantizer = _quantizer([_matrix(node) for node in products], bits, exact=is_exact)
    guard = _NanGuard(model.graph)
    stored: dict[ir.Value, Sequence[ir.Value]] = {}
    for node in products:
        weight = _matrix(node)
        if weight not in stored:
            stored[weight] = _store_blocks(weight, quantizer, weights)
        product = _product(node, stored[weight], quantizer)
        if is_exact or node.graph is not model.graph:
            replace_node(node, product)
        else:
            multiply(node, product, guard.of(node))
    if precision.embeddings == "int8":
        quantize_tables(model, weights)
    drop_unused_weights(model)
    model.graph.opset_imports["com.microsoft"] = 1
    return model


def _factor(node: ir.Node) -> ir.Value | None:
    return node.inputs[1] if node.op_type == "MatMul" else None


def _matrix(product: ir.Node) -> ir.Value:
    matrix = product.inputs[1]
    assert matrix is not None  # a required input
    return matrix


def _quantizer(matrices: Sequence[ir.Value], bits: int, *, exact: bool) -> DefaultWeightOnlyQuantizer:
    """Return ONNX Runtime's quantizer of single weights, with the size of blocks for a base with these matrices."""
    narrowest = min((int(tensor_of(matrix).shape.numpy()[0]) for matrix in matrices), default=1)
    wide = 1 << max(narrowest, 1).bit_length() - 1  # columns are zero-padded to a whole block
    config = DefaultWeightOnlyQuantConfig(
        block_size=_SMALLEST_BLOCK if exact or bits < 8 else min(max(wide, _SMALLEST_BLOCK), _LARGEST_BLOCK),
        is_symmetric=False,
        accuracy_level=_FLOAT32_LEVEL if exact else _INT8_LEVEL,
        bits=bits,
    )
    return DefaultWeightOnlyQuantizer(config)


def _store_blocks(weight: ir.Value, quantizer: DefaultWeightOnlyQuantizer, weights: WeightFile) -> Sequence[ir.Value]:
    """Write a matrix [in, out] as packed integers [out, blocks, bytes], scales, and packed zero points.

    Columns are quantized independently, so they are read in parts.
    """
    matrix = array_of(tensor_of(weight))
    parts = [quantizer.qbits_block_quant(np.ascontiguousarray(matrix[:, part])) for part in columns_of(matrix)]
    names = (f"{weight.name}_Q{quantizer.config.bits}", f"{weight.name}_scales", f"{weight.name}_zero_points")
    assert weight.graph is not None  # it is an initializer
    return [
        weights.add(weight.graph, name, np.concatenate(arrays))
        for name, arrays in zip(names, zip(*parts, strict=True), strict=True)
    ]


def _product(node: ir.Node, stored: Sequence[ir.Value], quantizer: DefaultWeightOnlyQuantizer) -> ir.Value:
    rows, columns = tensor_of(_matrix(node)).shape.numpy()
    config = quantizer.config
    return add_node(
        node,
        "MatMulNBits",
        [node.inputs[0], *stored],
        domain="com.microsoft",
        K=rows,
        N=columns,
        bits=config.bits,
        block_size=config.block_size,
        accuracy_level=config.accuracy_level,
    )


class _NanGuard:
    """Factors per token, 1 + 0·Σx, which are 1 or NaN: ONNX Runtime loses NaN when it rounds activations."""

    def __init__(self, graph: ir.Graph) -> None:
        self._axis = register(graph, ir.tensor(np.array([-1]), name="finite.axis"))
        self._zero = register(graph, ir.tensor(np.zeros((), np.float32), name="finite.zero"))
        self._one = register(graph, ir.tensor(np.ones((), np.float32), name="finite.one"))
        self._made: dict[ir.Value, ir.Value] = {}

    def of(self, product: ir.Node) -> ir.Value:
        """Return the factor for the input of a product, which is computed before the first product that reads it."""
        x = product.inputs[0]
        assert x is not None  # a required input
        if x not in self._made:
            total = add_node(product, "ReduceSum", [x, self._axis], f"{x.name}.sum", keepdims=1)
            zero = add_node(product, "Mul", [total, self._zero], f"{x.name}.zero")
            self._made[x] = add_node(product, "Add", [zero, self._one], f"{x.name}.finite")
        return self._made[x]


RECIPES: Mapping[PrecisionName, Recipe] = {
    "int8-weights": partial(_weights, bits=8),
    "int4-weights": partial(_weights, bits=4),
}
