"""Convert a base to float16 with ONNX Runtime's converter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime.transformers.float16 import convert_float_to_float16, convert_np_to_float16

from adapter_export.format.precision import Precision, PrecisionName
from adapter_export.onnx_backend.base.external import in_memory
from adapter_export.onnx_backend.base.weight_file import WeightFile, array_of, is_embedded, rows_of
from adapter_export.onnx_backend.quantise.graph_edits import tensor_of
from adapter_export.onnx_backend.quantise.recipes import Recipe

_SMALLEST_HALF, _LARGEST_HALF = 5.96e-8, 1e4
"""Range of float16 weights. A mask of -1e4 works like -1e38, and two of them do not overflow."""


def _float16(model: ir.Model, _precision: Precision, weights: WeightFile) -> ir.Model:
    """Convert a graph, then its large weights one at a time.

    The converter needs all weights in the graph's message. It gets arrays without elements in place of large ones,
    and decides which become float16.
    """
    large = _take_out_large_weights(model)
    proto = ir.to_proto(model)
    converted: ir.Model = ir.from_proto(
        convert_float_to_float16(
            proto,
            # clients pass and receive float32 in every precision
            keep_io_types=True,
            # arrays without elements have no valid shapes
            disable_shape_infer=True,
            min_positive_val=_SMALLEST_HALF,
            max_finite_val=_LARGEST_HALF,
            node_block_list=_kept_in_float32(proto.graph),
        )
    )
    for graph in converted.graphs():
        for name in graph.initializers.keys() & large.keys():
            _put_back(graph.initializers[name], large[name], weights)
    return converted


def _take_out_large_weights(model: ir.Model) -> Mapping[str, ir.TensorProtocol]:
    """Replace large weights by arrays without elements, and return them by name."""
    large: dict[str, ir.TensorProtocol] = {}
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = tensor_of(value)
            if is_embedded(tensor):
                value.const_value = in_memory(tensor)
            else:
                large[name] = tensor
                value.const_value = ir.Tensor(np.zeros(0, tensor.dtype.numpy()), dtype=tensor.dtype, name=name)
    return large


def _put_back(value: ir.Value, tensor: ir.TensorProtocol, weights: WeightFile) -> None:
    """Give a value of the converted graph its weight, in the type that the converter chose."""
    if tensor_of(value).dtype != tensor.dtype:
        floats = array_of(tensor)
        halves = (convert_np_to_float16(part, _SMALLEST_HALF, _LARGEST_HALF) for part in rows_of(floats))
        tensor = weights.write(tensor.name or "", ir.DataType.FLOAT16, floats.shape, halves)
    value.const_value, value.shape = tensor, ir.Shape(tensor.shape.numpy())
    for node, _ in value.uses():  # the converter gives these the shape of the array without elements
        if node.op_type == "Cast":
            node.outputs[0].shape = ir.Shape(tensor.shape.numpy())


def _kept_in_float32(graph: onnx.GraphProto) -> list[str]:
    """Return the names of products that read a transpose of the batch, and of those transposes.

    On the CPU, ONNX Runtime inserts a cast between the two if they are float16, and then its MatmulTransposeFusion
    crashes the process (seen with 1.32). torch's `nn.TransformerEncoder` has them.
    """
    transposes, float32_nodes = {}, []
    for index, node in enumerate(graph.node):
        node.name = node.name or f"node_{index}"
        perm = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])
        if node.op_type == "Transpose" and (not perm or perm[0] != 0):
            transposes[node.output[0]] = node.name
    for node in graph.node:
        read = [transposes[name] for name in node.input if name in transposes]
        if read and node.op_type in ("MatMul", "Gemm"):
            float32_nodes += [node.name, *read]
    return float32_nodes


RECIPES: Mapping[PrecisionName, Recipe] = {"fp16": _float16}
