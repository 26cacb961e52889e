"""Products with weights that other nodes read, too, such as embeddings that are also the language head."""

from __future__ import annotations

from collections.abc import Sequence

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
        if tuple(transpose.attributes.get_ints("perm", (1, 0))) != (1, 0):
            continue
        if x.dtype is None or not x.dtype.is_floating_point():  # ONNX Runtime has no Gemm of integers
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
    *leading, _ = x.shape

    def typed(value: ir.Value, shape: Sequence[int | ir.SymbolicDim | None], dtype: ir.DataType | None) -> ir.Value:
        value.shape, value.type = ir.Shape(shape), None if dtype is None else ir.TensorType(dtype)
        return value

    def sizes(values: list[int]) -> ir.Value:
        constant = tape.op("Constant", [], {"value": ir.tensor(np.array(values, np.int64))})
        return typed(constant, [len(values)], ir.DataType.INT64)

    def gemm(matrix: ir.Value, rows: int | ir.SymbolicDim | None) -> ir.Value:
        return typed(tape.op("Gemm", [matrix, weight], {"transB": 1}), [rows, out], x.dtype)

    if len(leading) == 1:
        return gemm(x, leading[0])
    rows = typed(tape.op("Reshape", [x, sizes([-1, width])]), [None, width], x.dtype)
    product = gemm(rows, None)
    kept = typed(tape.op("Shape", [x], {"start": 0, "end": -1}), [len(leading)], ir.DataType.INT64)
    shape = typed(tape.op("Concat", [kept, sizes([out])], {"axis": 0}), [len(leading) + 1], ir.DataType.INT64)
    reshaped = tape.op("Reshape", [product, shape], {"allowzero": 1})  # a 0 is a length, not a size of `product`
    return typed(reshaped, [*leading, out], x.dtype)
