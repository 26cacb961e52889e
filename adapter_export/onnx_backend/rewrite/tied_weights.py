"""Products with weights that other nodes read, too, such as embeddings that are also the language head."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def transpose_in_products(graph: ir.Graph) -> None:
    """Replace `MatMul(x, Transpose(weight))` by `Gemm` with `transB`, in place, for weights with other readers.

    ONNX Runtime computes such a `Transpose` when it loads the graph, into a second copy of the weight: seconds, and
    0.5 GB for a vocabulary of 150,000. `Gemm` (ONNX, opset 13) reads the weight as it is, at the same speed, but only
    matrices, so `x` [..., in] is reshaped.
    """
    for product in [node for node in graph if node.op_type == "MatMul"]:
        x, factor = product.inputs
        transpose = None if factor is None else factor.producer()
        if x is None or x.shape is None or transpose is None or transpose.op_type != "Transpose":
            continue
        weight = transpose.inputs[0]
        is_matrix = weight is not None and weight.is_initializer() and len(weight.shape or ()) == 2
        if not is_matrix or weight is None or len(weight.uses()) == 1:
            continue
        tape = ir.tape.Tape()
        result = _multiplied(tape, x, weight)
        last = result.producer()
        assert last is not None
        for at, node in enumerate(tape.nodes):
            node.name = f"{product.name}/{at}"
            node.outputs[0].name = f"{product.outputs[0].name}/{at}"
            node.metadata_props.update(product.metadata_props)
        last.name = product.name
        result.type, result.shape = product.outputs[0].type, product.outputs[0].shape
        ir.convenience.replace_nodes_and_values(graph, product, [product], tape.nodes, product.outputs, [result])
        if not transpose.outputs[0].uses() and not transpose.outputs[0].is_graph_output():
            graph.remove(transpose, safe=True)


def _multiplied(tape: ir.tape.Tape, x: ir.Value, weight: ir.Value) -> ir.Value:
    """Write the product of `x` [..., in] with the transpose of a weight [out, in]."""
    assert x.shape is not None and weight.shape is not None  # noqa: PT018 one condition for the type checker
    out, width = (int(size) for size in weight.shape.numpy())

    def op(name: str, inputs: list[ir.Value], shape: list[object], **attributes: object) -> ir.Value:
        value = tape.op(name, inputs, attributes)
        value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.INT64 if name in _SIZES else x.dtype)
        return value

    def sizes(values: list[int]) -> ir.Value:
        return op("Constant", [], [len(values)], value=ir.tensor(np.array(values, np.int64)))

    if len(x.shape) == 2:
        return op("Gemm", [x, weight], [x.shape[0], out], transB=1)
    rows = op("Reshape", [x, sizes([-1, width])], [None, width])
    product = op("Gemm", [rows, weight], [None, out], transB=1)
    leading = op("Shape", [x], [len(x.shape) - 1], start=0, end=-1)
    shape = op("Concat", [leading, sizes([out])], [len(x.shape)], axis=0)
    return op("Reshape", [product, shape], [*x.shape[:-1], out])


_SIZES = frozenset({"Constant", "Shape", "Concat"})
"""Operators above that compute sizes."""
