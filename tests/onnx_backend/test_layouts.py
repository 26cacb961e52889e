"""The layout of a matrix comes from the nodes that read it: square ones look alike in every layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, shape_inference
from tiny_onnx import save_tiny, tiny_model

from adapter_export.numerics.base_layers import layer_finder
from adapter_export.onnx_backend.base.onnx_base import open_onnx

NAME = "l0_query"

TURNS = {
    "product": ((), False),
    "transposed": (((1, 0),), True),
    "transposed by default": ((None,), True),
    "transposed twice": (((1, 0), (1, 0)), False),
    "not transposed": (((0, 1),), False),
}
"""Orders of axes of the `Transpose` nodes between the matrix and its product, and whether it is stored [out, in]."""


def turned(model: onnx.ModelProto, orders: tuple[tuple[int, ...] | None, ...]) -> onnx.ModelProto:
    (product,) = (node for node in model.graph.node if NAME in node.input)
    nodes, value = [], NAME
    for number, order in enumerate(orders):
        attributes = {} if order is None else {"perm": order}
        nodes.append(helper.make_node("Transpose", [value], [f"turned_{number}"], **attributes))
        value = f"turned_{number}"
    product.input[1] = value
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    return shape_inference.infer_shapes(model)


@pytest.mark.parametrize("how", TURNS)
def test_square_matrices_behind_transposes_keep_their_layout(how: str, tmp_path: Path) -> None:
    orders, out_first = TURNS[how]
    model = turned(tiny_model(), orders)
    (stored,) = (numpy_helper.to_array(value) for value in model.graph.initializer if value.name == NAME)
    base = open_onnx(save_tiny(tmp_path, model))
    (site,) = (site for site in base.sites if site.name == "layers.0.attention.query")
    layer = layer_finder(base)(site)
    assert layer is not None
    np.testing.assert_array_equal(layer.weight, stored if out_first else stored.T)
    assert layer.in_first != out_first


@pytest.mark.parametrize("transposes", [False, True])
def test_square_matrices_in_a_transposing_gemm_keep_their_layout(transposes: bool, tmp_path: Path) -> None:
    """The query, read by `Gemm` with `transB`, behind a `Transpose` or not."""
    model = tiny_model()
    (product,) = (node for node in model.graph.node if NAME in node.input)
    rows = helper.make_node("Reshape", [product.input[0], "rows"], ["flat"])
    matrix = "turned" if transposes else NAME
    gemm = helper.make_node("Gemm", ["flat", matrix, "bias_of_query"], ["flat_query"], transB=1)
    shape = helper.make_node("Shape", [product.input[0]], ["shape"])
    back = helper.make_node("Reshape", ["flat_query", "shape"], [product.output[0]])
    turn = [helper.make_node("Transpose", [NAME], ["turned"], perm=(1, 0))] if transposes else []
    at = list(model.graph.node).index(product)
    model.graph.node.remove(product)
    for node in reversed([*turn, shape, rows, gemm, back]):
        model.graph.node.insert(at, node)
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 16]), "rows"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(16, np.float32), "bias_of_query"))
    (stored,) = (numpy_helper.to_array(value) for value in model.graph.initializer if value.name == NAME)
    model = shape_inference.infer_shapes(model, data_prop=True)
    base = open_onnx(save_tiny(tmp_path, model))
    (site,) = (site for site in base.sites if site.name == "layers.0.attention.query")
    layer = layer_finder(base)(site)
    assert layer is not None
    np.testing.assert_array_equal(layer.weight, stored.T if transposes else stored)
