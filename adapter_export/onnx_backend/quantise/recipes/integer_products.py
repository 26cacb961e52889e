"""Products of 8-bit integers, with a scale per token and per column of a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

from adapter_export.format.precision import Precision, PrecisionName
from adapter_export.onnx_backend.quantise.protos import int8_tables, multiplied, replace_nodes
from adapter_export.onnx_backend.quantise.recipes import Recipe

_LARGEST_ACTIVATION, _ZERO = 127, 128
_LARGEST_WEIGHT = 63
"""Maximum weight: processors without VNNI add two byte products in 16 bits and saturate; 2 x 255 x 63 fits."""

_TINY = 1e-30

_AXES_OF_MAX_OPSET = 18
"""First opset in which the axes of `ReduceMax` and `ReduceMean` are an input."""


def _int8(proto: onnx.ModelProto, _precision: Precision) -> onnx.ModelProto:
    """Quantize products to integers, with a scale per token and per column of a weight.

    The scale of a token (ZeroQuant, Yao et al. 2022, §4.1) depends on that token only, so rows of a batch are
    independent; `DynamicQuantizeLinear` has one scale for all of them. Lookup tables are in 8 bits, too.
    """
    proto = int8_tables(proto)
    ONNXModel(proto).replace_gemm_with_matmul()
    graph, opset = proto.graph, next(one.version for one in proto.opset_import if not one.domain)
    weights = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    constants = {
        "int8.axis": np.array([-1]),
        "int8.tiny": np.array(_TINY, np.float32),
        "int8.step": np.array(1 / _LARGEST_ACTIVATION, np.float32),
        "int8.zero": np.array(_ZERO, np.uint8),
    }
    nodes: list[onnx.NodeProto] = []
    rounded: set[str] = set()
    for node in graph.node:
        x, weight = node.input if node.op_type == "MatMul" else ("", "")
        if weight not in weights or x in weights:
            nodes.append(node)
            continue
        if x not in rounded:
            rounded.add(x)
            nodes += _rounded(x, opset)
        if f"{weight}.int8" not in constants:
            matrix = numpy_helper.to_array(weights[weight])
            steps = np.abs(matrix).max(0) / np.float32(_LARGEST_WEIGHT)
            steps[steps == 0] = 1
            constants |= {f"{weight}.int8": np.rint(matrix / steps).astype(np.int8), f"{weight}.step": steps}
        inputs = [f"{x}.int8", f"{weight}.int8", "int8.step", f"{weight}.step", "int8.zero"]
        product = onnx.helper.make_node("MatMulIntegerToFloat", inputs, node.output, domain="com.microsoft")
        product.metadata_props.extend(node.metadata_props)
        nodes += multiplied(product, f"{x}.largest", graph)
    replace_nodes(graph, nodes, constants)
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return proto


def _rounded(x: str, opset: int) -> Iterator[onnx.NodeProto]:
    """Write the largest absolute value of each token of `x`, [..., 1], and `x` as integers relative to it.

    ONNX Runtime's `ReduceMax` ignores NaN. The mean does not, and never exceeds the maximum.
    """
    node = onnx.helper.make_node
    axes: list[str] = ["int8.axis"] if opset >= _AXES_OF_MAX_OPSET else []
    attributes: dict[str, Any] = {} if axes else {"axes": [-1]}
    yield node("Abs", [x], [f"{x}.absolute"])
    yield node("ReduceMax", [f"{x}.absolute", *axes], [f"{x}.max"], keepdims=1, **attributes)
    yield node("ReduceMean", [f"{x}.absolute", *axes], [f"{x}.mean"], keepdims=1, **attributes)
    yield node("Max", [f"{x}.max", f"{x}.mean", "int8.tiny"], [f"{x}.largest"])
    yield node("Div", [x, f"{x}.largest"], [f"{x}.relative"])
    yield node("QuantizeLinear", [f"{x}.relative", "int8.step", "int8.zero"], [f"{x}.int8"])


RECIPES: Mapping[PrecisionName, Recipe] = {"int8": _int8}
