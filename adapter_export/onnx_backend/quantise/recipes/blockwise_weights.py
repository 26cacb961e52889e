"""Weights of 8 or 4 bits in blocks of a column, by ONNX Runtime's quantizer for `MatMulNBits`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_model import ONNXModel

from adapter_export.format.precision import Precision, PrecisionName
from adapter_export.onnx_backend.quantise.protos import int8_tables, multiplied, replace_nodes
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


def _weights(proto: onnx.ModelProto, precision: Precision, *, bits: int) -> onnx.ModelProto:
    made = _blockwise(proto, bits, exact=precision.activations == "float32")
    return int8_tables(made) if precision.embeddings == "int8" else made


def _blockwise(proto: onnx.ModelProto, bits: int, *, exact: bool) -> onnx.ModelProto:
    """Quantize weights in blocks; activations to 8 bits, too, in blocks of one token, unless `exact`.

    ONNX Runtime loses NaN when it rounds activations. The result is therefore multiplied by 1 + 0·Σx, which is 1 or
    NaN.
    """
    ONNXModel(proto).replace_gemm_with_matmul()
    matrices = {node.input[1] for node in proto.graph.node if node.op_type == "MatMul"}
    rows = [tensor.dims[0] for tensor in proto.graph.initializer if tensor.name in matrices and len(tensor.dims) == 2]
    narrowest = min(rows, default=1)
    wide = 1 << max(narrowest, 1).bit_length() - 1  # columns are zero-padded to a whole block
    config = DefaultWeightOnlyQuantConfig(
        block_size=_SMALLEST_BLOCK if exact or bits < 8 else min(max(wide, _SMALLEST_BLOCK), _LARGEST_BLOCK),
        is_symmetric=False,
        accuracy_level=_FLOAT32_LEVEL if exact else _INT8_LEVEL,
        bits=bits,
    )
    quantizer = MatMulNBitsQuantizer(proto, algo_config=config)
    quantizer.process()
    made: onnx.ModelProto = quantizer.model.model
    if exact:
        return made
    nodes: list[onnx.NodeProto] = []
    summed: set[str] = set()
    for node in made.graph.node:
        if node.op_type != "MatMulNBits":
            nodes.append(node)
            continue
        x = node.input[0]
        if x not in summed:
            summed.add(x)
            nodes += [
                onnx.helper.make_node("ReduceSum", [x, "finite.axis"], [f"{x}.sum"], keepdims=1),
                onnx.helper.make_node("Mul", [f"{x}.sum", "finite.zero"], [f"{x}.zero"]),
                onnx.helper.make_node("Add", [f"{x}.zero", "finite.one"], [f"{x}.finite"]),
            ]
        nodes += multiplied(node, f"{x}.finite", made.graph)
    zero, one = np.zeros((), np.float32), np.ones((), np.float32)
    numbers = {"finite.axis": np.array([-1]), "finite.zero": zero, "finite.one": one}
    replace_nodes(made.graph, nodes, numbers)
    return made


RECIPES: Mapping[PrecisionName, Recipe] = {
    "int8-weights": partial(_weights, bits=8),
    "int4-weights": partial(_weights, bits=4),
}
