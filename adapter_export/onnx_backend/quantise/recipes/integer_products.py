"""Products of 8-bit integers, with a scale per token and per column of a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from adapter_export.format.precision import Precision, PrecisionName
from adapter_export.onnx_backend.base.weight_file import WeightFile, array_of, columns_of, register
from adapter_export.onnx_backend.quantise.graph_edits import (
    add_node,
    constant_matrix,
    drop_unused_weights,
    expose_matrices,
    multiply,
    quantize_tables,
    tensor_of,
)
from adapter_export.onnx_backend.quantise.recipes import Recipe

_LARGEST_ACTIVATION, _ZERO = 127, 128
"""Symmetric range of activations, and the integer of 0 in uint8."""

_LARGEST_WEIGHT = 63
"""Maximum weight: processors without VNNI add two byte products in 16 bits and saturate; 2 x 255 x 63 fits."""

_TINY = 1e-30
"""Smallest scale of a token: one of only zeros would be divided by 0."""

_AXES_OF_MAX_OPSET = 18
"""First opset in which the axes of `ReduceMax` and `ReduceMean` are an input."""


def _int8(model: ir.Model, _precision: Precision, weights: WeightFile) -> ir.Model:
    """Quantize products to integers, with a scale per token and per column of a weight.

    The scale of a token (ZeroQuant, Yao et al. 2022, §4.1) depends on that token only, so rows of a batch are
    independent; `DynamicQuantizeLinear` has one scale for all of them. Lookup tables are in 8 bits, too. A weight that
    is a lookup table and a factor, such as tied embeddings, is stored once for each use.
    """
    quantize_tables(model, weights)
    expose_matrices(model)
    graph = model.graph
    numbers = _Numbers(
        axis=register(graph, ir.tensor(np.array([-1]), name="int8.axis")),
        tiny=register(graph, ir.tensor(np.array(_TINY, np.float32), name="int8.tiny")),
        step=register(graph, ir.tensor(np.array(1 / _LARGEST_ACTIVATION, np.float32), name="int8.step")),
        zero=register(graph, ir.tensor(np.array(_ZERO, np.uint8), name="int8.zero")),
    )
    rounded: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    quantized: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node in [node for node in graph if node.op_type == "MatMul"]:
        x, weight = node.inputs[0], constant_matrix(node.inputs[1])
        if weight is None or x is None or constant_matrix(x) is not None:
            continue
        if x not in rounded:
            rounded[x] = _round(x, node, numbers, graph.opset_imports[""])
        if weight not in quantized:
            quantized[weight] = _quantize(weight, graph, weights)
        (integers, largest), (matrix, steps) = rounded[x], quantized[weight]
        inputs = [integers, matrix, numbers.step, steps, numbers.zero]
        multiply(node, add_node(node, "MatMulIntegerToFloat", inputs, domain="com.microsoft"), largest)
    drop_unused_weights(model)
    graph.opset_imports["com.microsoft"] = 1
    return model


@dataclass(frozen=True)
class _Numbers:
    """Constants that all products share."""

    axis: ir.Value
    tiny: ir.Value
    step: ir.Value
    zero: ir.Value


def _round(x: ir.Value, before: ir.Node, numbers: _Numbers, opset: int) -> tuple[ir.Value, ir.Value]:
    """Insert the largest absolute value of each token of `x`, [..., 1], and `x` as integers relative to it.

    ONNX Runtime's `ReduceMax` ignores NaN. The mean does not, and never exceeds the maximum. Returns the integers and
    the largest values.
    """
    by_input = opset >= _AXES_OF_MAX_OPSET
    axes, options = ([numbers.axis], {}) if by_input else ([], {"axes": [-1]})
    absolute = add_node(before, "Abs", [x], f"{x.name}.absolute")
    most = add_node(before, "ReduceMax", [absolute, *axes], f"{x.name}.max", keepdims=1, **options)
    mean = add_node(before, "ReduceMean", [absolute, *axes], f"{x.name}.mean", keepdims=1, **options)
    largest = add_node(before, "Max", [most, mean, numbers.tiny], f"{x.name}.largest")
    relative = add_node(before, "Div", [x, largest], f"{x.name}.relative")
    integers = add_node(before, "QuantizeLinear", [relative, numbers.step, numbers.zero], f"{x.name}.int8")
    return integers, largest


def _quantize(weight: ir.Value, graph: ir.Graph, weights: WeightFile) -> tuple[ir.Value, ir.Value]:
    """Return a matrix [in, out] as integers, and the step of each column [out]."""
    matrix = array_of(tensor_of(weight))
    integers, steps = np.empty(matrix.shape, np.int8), np.empty(matrix.shape[1], np.float32)
    for part in columns_of(matrix):
        columns = matrix[:, part]
        widths = np.abs(columns).max(0) / np.float32(_LARGEST_WEIGHT)
        # a column of zeros has no step; any other keeps it at 0
        widths[widths == 0] = 1
        integers[:, part], steps[part] = np.rint(columns / widths), widths
    return weights.add(graph, f"{weight.name}.int8", integers), weights.add(graph, f"{weight.name}.step", steps)


RECIPES: Mapping[PrecisionName, Recipe] = {"int8": _int8}
