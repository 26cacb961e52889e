"""Edits of a graph that several recipes share: products with weights as [in, out], tables in 8 bits, replaced nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto
from onnxruntime.quantization.quant_utils import compute_data_quant_params, quantize_nparray

from adapter_export.onnx_backend.base.weight_file import WeightFile, array_of, register, rows_of

_BIAS = 2
"""Index of the bias among the inputs of `Gemm`."""


def add_node(
    before: ir.Node, op: str, inputs: Sequence[ir.Value | None], name: str | None = None, **options: Any
) -> ir.Value:
    """Insert a node with one output, and return the output.

    Args:
        before: the node to insert before.
        op: the operator.
        inputs: what it reads.
        name: name of its output.
        options: attributes, and its `domain`.
    """
    node = ir.node(op, inputs, domain=options.pop("domain", ""), attributes=options)
    node.outputs[0].name = name
    graph_of(before).insert_before(before, node)
    return node.outputs[0]


def replace_node(node: ir.Node, result: ir.Value) -> None:
    """Remove a node with one output; a new node's `result` takes over the name, type and shape of the output."""
    _pass_on(node, result)
    node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
    graph_of(node).remove(node, safe=True)


def _pass_on(node: ir.Node, value: ir.Value, suffix: str = "") -> None:
    """Give a new value the name, type and shape of a node's output, and its node the metadata of that node.

    ONNX cannot infer the shapes of ONNX Runtime's operators.
    """
    output, maker = node.outputs[0], value.producer()
    assert maker is not None  # a new node computes it
    value.name, value.type, value.shape = f"{output.name}{suffix}", output.type, output.shape
    maker.metadata_props.update(node.metadata_props)


def multiply(node: ir.Node, product: ir.Value, factor: ir.Value) -> None:
    """Replace a node with one output by a new node's `product`, times a factor per token."""
    _pass_on(node, product, ".product")
    replace_node(node, add_node(node, "Mul", [product, factor]))


def graph_of(node: ir.Node) -> ir.Graph:
    """Return the graph that contains a node, the main graph or a branch."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)  # bases have no functions
    return graph


def constant_matrix(value: ir.Value | None) -> ir.Value | None:
    """Return a value if it is a float32 matrix among the initializers, otherwise `None`."""
    return value if value is not None and _is_float_weight(value) and len(value.shape or ()) == 2 else None


def _is_float_weight(value: ir.Value) -> bool:
    return value.const_value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT


def tensor_of(weight: ir.Value) -> ir.TensorProtocol:
    """Return the tensor of an initializer."""
    assert weight.const_value is not None
    return weight.const_value


def expose_matrices(model: ir.Model, *, behind_transposes: bool = True) -> None:
    """Replace `Gemm` by `MatMul`, and give each product that transposes its weight a weight [in, out].

    The new weights are read from the original ones when needed. Exporters write `Transpose` between a product and a
    weight with other readers, such as embeddings that are also the language head; without `behind_transposes`, it
    stays.
    """
    turned = _TransposedWeights(model)
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Gemm" and _is_product(node):
            _separate(node, turned)
        elif node.op_type == "MatMul" and behind_transposes:
            _skip_transpose(node, turned)


class _TransposedWeights:
    """New initializers with the transposes of others, one for each."""

    def __init__(self, model: ir.Model) -> None:
        self._names = {value.name for node in model.graph.all_nodes() for value in node.outputs}
        for graph in model.graphs():
            self._names.update(value.name for value in (*graph.inputs, *graph.initializers.values()))
        self._made: dict[ir.Value, ir.Value] = {}

    def of(self, weight: ir.Value) -> ir.Value:
        """Return the transpose of a weight."""
        if weight not in self._made:
            self._made[weight] = self._transpose(weight)
        return self._made[weight]

    def _transpose(self, weight: ir.Value) -> ir.Value:
        tensor = tensor_of(weight)
        name = f"{weight.name}_Transposed"
        while name in self._names:
            name += "_"
        self._names.add(name)
        shape = ir.Shape(reversed(tensor.shape.numpy()))
        view = ir.LazyTensor(lambda: ir.Tensor(array_of(tensor).T), dtype=tensor.dtype, shape=shape, name=name)
        assert weight.graph is not None  # it is an initializer
        return register(weight.graph, view)


def _is_product(gemm: ir.Node) -> bool:
    """Return whether a `Gemm` is a product and a sum without factors."""
    attributes = gemm.attributes
    factors = [attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    return factors == [1, 1] and not attributes.get_int("transA", 0)


def _separate(gemm: ir.Node, turned: _TransposedWeights) -> None:
    x, weight = gemm.inputs[:2]
    assert weight is not None  # required
    bias = gemm.inputs[_BIAS] if len(gemm.inputs) > _BIAS else None
    if gemm.attributes.get_int("transB", 0):
        is_constant = weight.is_initializer() and weight.const_value is not None
        weight = turned.of(weight) if is_constant else add_node(gemm, "Transpose", [weight], perm=[1, 0])
    product = add_node(gemm, "MatMul", [x, weight])
    if bias is None:
        replace_node(gemm, product)
    else:
        _pass_on(gemm, product, "_MatMul")
        replace_node(gemm, add_node(gemm, "Add", [product, bias]))


def _skip_transpose(product: ir.Node, turned: _TransposedWeights) -> None:
    """Make a product read the transpose of a weight instead of transposing it."""
    transpose = None if product.inputs[1] is None else product.inputs[1].producer()
    if transpose is None or transpose.op_type != "Transpose":
        return
    weight = constant_matrix(transpose.inputs[0])
    if weight is None or tuple(transpose.attributes.get_ints("perm", (1, 0))) != (1, 0):
        return
    product.replace_input_with(1, turned.of(weight))
    if not transpose.outputs[0].uses() and not transpose.outputs[0].is_graph_output():
        graph_of(transpose).remove(transpose, safe=True)


def drop_unused_weights(model: ir.Model) -> None:
    """Remove initializers that no node reads."""
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]


def quantize_tables(model: ir.Model, weights: WeightFile) -> None:
    """Store embeddings in 8 bits, with one scale and zero point per table, and dequantize the rows that are read.

    Other nodes that read such a table keep its floats.
    """
    stored: dict[ir.Value, Sequence[ir.Value]] = {}
    for node in [node for node in model.graph if node.op_type == "Gather"]:
        table, rows = node.inputs[0], node.outputs[0]
        if table is None or not _is_float_weight(table):
            continue
        if table not in stored:
            stored[table] = tuple(register(model.graph, tensor) for tensor in _in_bytes(table, weights))
        integers, *scaling = stored[table]
        name = f"{rows.name}_quantized.packed"
        packed = add_node(node, "Gather", [integers, node.inputs[1]], name, axis=node.attributes.get_int("axis", 0))
        packed.type, packed.shape = ir.TensorType(ir.DataType.UINT8), rows.shape
        replace_node(node, add_node(node, "DequantizeLinear", [packed, *scaling]))


def _in_bytes(table: ir.Value, weights: WeightFile) -> Iterator[ir.TensorProtocol]:
    """Yield the integers of a table, their scale and their zero point."""
    floats = array_of(tensor_of(table))
    ends = np.array([end for part in rows_of(floats) for end in (part.min(), part.max())])
    zero, scale = compute_data_quant_params(ends, TensorProto.UINT8, symmetric=False)
    rows = (quantize_nparray(TensorProto.UINT8, part, scale, zero) for part in rows_of(floats))
    yield weights.write(f"{table.name}_quantized", ir.DataType.UINT8, floats.shape, rows)
    yield ir.Tensor(np.asarray(scale, np.float32), name=f"{table.name}_scale")
    yield ir.Tensor(np.asarray(zero, np.uint8), name=f"{table.name}_zero_point")
