"""Convert a base to float16 with ONNX Runtime's converter."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from adapter_export.format.precision import Precision, PrecisionName
from adapter_export.onnx_backend.quantise.recipes import Recipe

_SMALLEST_HALF, _LARGEST_HALF = 5.96e-8, 1e4
"""Range of float16 weights. A mask of -1e4 works like -1e38, and two of them do not overflow."""


def _float16(proto: onnx.ModelProto, _precision: Precision) -> onnx.ModelProto:
    converted: onnx.ModelProto = convert_float_to_float16(
        proto,
        keep_io_types=True,
        disable_shape_infer=True,
        min_positive_val=_SMALLEST_HALF,
        max_finite_val=_LARGEST_HALF,
        node_block_list=_kept_in_float32(proto.graph),
    )
    return converted


def _kept_in_float32(graph: onnx.GraphProto) -> list[str]:
    """Return the names of products that read a transpose of the batch, and of those transposes.

    On the CPU, ONNX Runtime inserts a cast between the two if they are float16, and then its MatmulTransposeFusion
    crashes the process (seen with 1.32). torch's `nn.TransformerEncoder` has them.
    """
    transposes, kept = {}, []
    for index, node in enumerate(graph.node):
        node.name = node.name or f"node_{index}"
        perm = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])
        if node.op_type == "Transpose" and (not perm or perm[0] != 0):
            transposes[node.output[0]] = node.name
    for node in graph.node:
        read = [transposes[name] for name in node.input if name in transposes]
        if read and node.op_type in ("MatMul", "Gemm"):
            kept += [node.name, *read]
    return kept


RECIPES: Mapping[PrecisionName, Recipe] = {"fp16": _float16}
