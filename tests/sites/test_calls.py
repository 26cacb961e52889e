"""Calls of a layer that are no sites are counted, by module path or by the matrix."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper, parser

from adapter_export.errors import BaseModelError
from adapter_export.onnx_backend.base.flow import flow_graph
from adapter_export.sites.discover import discover

WIDTH = 8


def model(more: str, more_outputs: str = "") -> ir.Model:
    """An ffn without a norm, and more."""
    made = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        g (float[batch, tokens, {WIDTH}] x) => (float[batch, tokens, {WIDTH}] y{more_outputs}) {{
            up = MatMul(x, w) bent = Relu(up) down = MatMul(bent, v) y = Add(x, down) {more}
        }}"""
    )
    rng = np.random.default_rng(0)
    shapes = {"w": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "positions": (5, WIDTH)}
    made.graph.initializer.extend(
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in shapes.items()
    )
    for name in ("up", "bent", "down"):
        made.graph.value_info.append(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", "tokens", WIDTH])
        )
    return ir.from_proto(onnx.shape_inference.infer_shapes(made))


def other_calls(made: ir.Model) -> dict[str, int]:
    return {
        site.name.rpartition(".")[2]: site.other_calls for site in discover(flow_graph(made)) if site.role == "linear"
    }


def test_layers_called_only_at_their_site_have_no_other_calls():
    assert other_calls(model("")) == {"up": 0, "down": 0}


def test_products_of_constants_are_counted_as_calls():
    assert other_calls(model("p = MatMul(positions, w) s = Shape(p)")) == {"up": 1, "down": 0}


def test_calls_behind_the_last_sublayer_are_counted():
    assert other_calls(model("logits = MatMul(y, v)", f", float[batch, tokens, {WIDTH}] logits")) == {
        "up": 0,
        "down": 1,
        "linear0": 0,  # a site without a path, which may be the same module
    }


def test_a_note_that_cannot_be_read_is_refused():
    made = model("")
    made.metadata_props["adapter_export.other_calls"] = "[1"
    with pytest.raises(BaseModelError, match="has a malformed record of its layers"):
        flow_graph(made)
    made.metadata_props["adapter_export.other_calls"] = '{"w": 2}'
    assert other_calls(made) == {"up": 2, "down": 0}
