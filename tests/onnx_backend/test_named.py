"""Tensors by name: in torch's layout, regardless of the graph's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from adapter_export.onnx_backend.base.onnx_base import open_onnx

WEIGHT = np.random.default_rng(0).normal(0, 0.2, (4, 4)).astype(np.float32)  # [out, in], square


def written(folder: Path, node: onnx.NodeProto, tensor: np.ndarray) -> Path:
    """Write a residual block whose ffn is one product, with a second weight that `node` reads."""
    types = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "t", 4]) for name in ("x", "y", "z")}
    flat = helper.make_tensor_value_info("p", TensorProto.FLOAT, None)
    body = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Add", ["h", "x"], ["y"], name="sum"),
        helper.make_node("ReduceMax", ["y", "axis"], ["first"], keepdims=0, name="pool"),
        node,
    ]
    constants = {"w": WEIGHT, "pooler.weight": tensor, "pooler.bias": WEIGHT[0], "axis": np.array([1])}
    graph = helper.make_graph(
        body,
        "one",
        [types["x"]],
        [types["y"], flat],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("node", "tensor", "found"),
    [
        (helper.make_node("Gemm", ["first", "pooler.weight", "pooler.bias"], ["p"], transB=1), WEIGHT, True),
        (helper.make_node("Gemm", ["first", "pooler.weight", "pooler.bias"], ["p"]), WEIGHT.T, True),
        (helper.make_node("MatMul", ["first", "pooler.weight"], ["p"]), WEIGHT.T, True),
        (helper.make_node("MatMul", ["pooler.weight", "pooler.bias"], ["p"]), WEIGHT, False),
        (helper.make_node("Transpose", ["pooler.weight"], ["p"], perm=[1, 0]), WEIGHT, False),  # no product reads it
    ],
)
def test_named_matrices_have_the_layout_of_torch(
    tmp_path: Path, node: onnx.NodeProto, tensor: np.ndarray, found: bool
) -> None:
    base = open_onnx(written(tmp_path, node, np.ascontiguousarray(tensor)))
    matrix = base.tensor("pooler.weight")
    if found:
        np.testing.assert_array_equal(matrix, WEIGHT)
    else:
        assert matrix is None


def test_tensor_lookup_returns_none_for_other_values(tmp_path: Path) -> None:
    gemm = helper.make_node("Gemm", ["first", "pooler.weight", "pooler.bias"], ["p"], transB=1)
    base = open_onnx(written(tmp_path, gemm, WEIGHT))
    np.testing.assert_array_equal(base.tensor("pooler.bias"), WEIGHT[0])
    assert base.tensor("absent") is None
    assert base.tensor("axis") is None
