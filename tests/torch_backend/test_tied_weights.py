"""Products with weights that other nodes read, too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from adapter_export.torch_backend.tied_weights import transpose_in_products

OUT, WIDTH = 7, 7
"""A square weight, so that a transpose left out is not seen in the shape."""


@pytest.mark.parametrize("leading", [["rows"], ["batch", "rows"], ["batch", 2, "rows"]], ids=len)
def test_shared_weights_are_read_without_a_transpose(leading: list[str | int]) -> None:
    shape = ",".join(str(size) for size in [*leading, WIDTH])
    model = _model(f"float[{shape}] x", "y = Add(product, picked)")
    sizes = {"rows": 5, "batch": 3, 2: 2}
    x = np.random.default_rng(1).standard_normal([*(sizes[size] for size in leading), WIDTH]).astype(np.float32)
    expected = _run(model, x)
    transpose_in_products(model.graph)
    assert {node.op_type for node in model.graph} >= {"Gemm", "Gather"}
    assert not {node.op_type for node in model.graph} & {"Transpose", "MatMul"}
    np.testing.assert_allclose(_run(model, x), expected, rtol=1e-6, atol=1e-6)


def test_a_transpose_with_other_readers_stays() -> None:
    model = _model("float[rows, 7] x", "both = Add(product, picked)  y = Add(both, turned)")
    x = np.random.default_rng(1).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    expected = _run(model, x)
    transpose_in_products(model.graph)
    assert {node.op_type for node in model.graph} >= {"Gemm", "Transpose"}
    np.testing.assert_allclose(_run(model, x), expected, rtol=1e-6, atol=1e-6)


def test_a_weight_with_one_reader_is_left_to_the_optimizer() -> None:
    model = _model("float[rows, 7] x", "y = Identity(product)", picked=False)
    before = [node.op_type for node in model.graph]
    transpose_in_products(model.graph)
    assert [node.op_type for node in model.graph] == before


def test_an_order_of_axes_that_transposes_nothing_is_left() -> None:
    """The weight is square: a product with its transpose would have the same shape, and other values."""
    model = _model("float[rows, 7] x", "y = Add(product, picked)", order="[0, 1]")
    x = np.random.default_rng(1).standard_normal((5, WIDTH)).astype(np.float32)
    expected = _run(model, x)
    transpose_in_products(model.graph)
    np.testing.assert_allclose(_run(model, x), expected, rtol=1e-6, atol=1e-6)


def test_transposed_products_accept_zero_rows() -> None:
    model = _model("float[batch, rows, 7] x", "y = Add(product, picked)")
    transpose_in_products(model.graph)
    for rows in ((3, 0), (0, 2)):
        assert _run(model, np.zeros((*rows, WIDTH), np.float32)).shape == (*rows, OUT)


def _model(x: str, end: str, *, picked: bool = True, order: str = "[1, 0]") -> ir.Model:
    pick = "picked = Gather(weight, one)" if picked else ""
    proto = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        tied ({x}) => (float[] y) {{
            one = Constant<value_int = 1>()
            {pick}
            turned = Transpose<perm = {order}>(weight)
            product = MatMul(x, turned)
            {end}
        }}""")
    weight = np.random.default_rng(0).normal(0, 0.2, (OUT, WIDTH)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    return ir.from_proto(proto)


def _run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])
