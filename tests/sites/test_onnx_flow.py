"""The neutral view of an ONNX graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from adapter_export.errors import BaseModelError
from adapter_export.onnx_backend.base.flow import flow_graph
from adapter_export.onnx_backend.base.operators import DEFAULT_EPSILON
from adapter_export.sites.view import FlowGraph, FlowNode


def view(
    body: str, *, weights: str = "", domain: str = "", inputs: str = "float[batch, tokens, 8] x", shapes: str = ""
) -> FlowGraph:
    """The view of a graph in ONNX's text syntax, from `inputs` to `out`.

    `weights` are initializers; `shapes` names values whose shape, that of `out`, the graph records.
    """
    declared = ", ".join(f"float{shape} {name}" for name, shape in (item.split("=") for item in weights.split()))
    imports = '"" : 20' + (f', "{domain}" : 1' if domain else "")
    head = f"<ir_version: 10, opset_import: [{imports}]> g ({inputs}) => (float[batch, tokens, 8] out)"
    model = onnx.parser.parse_model(f"{head} <{declared}> {{{body}}}")
    graph = ir.from_proto(_with_values(model))
    for value in [value for node in graph.graph for value in node.outputs if value.name in shapes.split()]:
        value.shape = ir.Shape(["batch", "tokens", 8])
    return flow_graph(graph)


def _with_values(model: onnx.ModelProto) -> onnx.ModelProto:
    for declared in list(model.graph.value_info):
        shape = [axis.dim_value for axis in declared.type.tensor_type.shape.dim]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), declared.name))
    del model.graph.value_info[:]
    return model


def node(flow: FlowGraph, output: str) -> FlowNode:
    return next(node for node in flow.nodes if output in node.outputs)


def test_a_product_with_an_initializer_is_weighted():
    product = node(view("out = MatMul(x, w)", weights="w=[8,8]"), "out")
    assert (product.kind, product.weighted, product.inputs) == ("product", True, ("x",))


def test_a_product_of_activations_is_not():
    product = node(view("t = Transpose<perm=[0,2,1]>(x) s = MatMul(x, t) out = MatMul(s, x)"), "s")
    assert (product.kind, product.weighted, product.mixes_tokens) == ("product", False, True)


def test_values_computed_only_from_weights_are_weights():
    flow = view("t = Transpose(w) r = Relu(t) out = MatMul(x, r)", weights="w=[8,8]")
    assert [node.op for node in flow.nodes] == ["MatMul"]
    assert node(flow, "out").weighted


def test_a_bias_of_a_gemm_is_no_factor():
    body = "a = Reshape(x, s) b = Transpose(a) c = Gemm(a, b, bias) out = MatMul(x, w)"
    flow = view(f"s = Constant<value_ints=[-1,8]>() {body} d = Identity(c)", weights="bias=[1] w=[8,8]")
    assert not node(flow, "c").weighted


def test_the_sum_with_a_bias_is_no_sum_of_activations():
    assert node(view("out = Add(x, b)", weights="b=[8]"), "out").kind == "other"


def test_the_sum_of_two_activations_is_an_add():
    assert node(view("y = Relu(x) out = Add(x, y)"), "out").kind == "add"


def test_values_computed_only_from_shapes_are_not_activations():
    """Position ids made from the number of tokens do not make their embeddings depend on the text."""
    flow = view(
        """
        shape = Shape<start=1, end=2>(x)
        n = Squeeze(shape)
        zero = Constant<value_int=0>()
        one = Constant<value_int=1>()
        ids = Range(zero, n, one)
        position = Gather(table, ids)
        out = Add(x, position)
        """,
        weights="table=[16,8]",
    )
    assert [node.op for node in flow.nodes] == ["Add"]
    assert node(flow, "out").kind == "other"


def test_a_reshape_to_the_same_shape_moves_nothing():
    assert node(view("s = Shape(x) out = Reshape(x, s)"), "out").kind == "other"


def test_weights_behind_dequantisation_are_weights():
    flow = view(
        "q = Cast<to=3>(w) s = Constant<value_float=0.1>() d = DequantizeLinear(q, s) out = MatMul(x, d)",
        weights="w=[8,8]",
    )
    assert node(flow, "out").weighted


def test_an_initializer_that_is_an_input_too_is_a_weight():
    flow = view("out = MatMul(x, w)", weights="w=[8,8]", inputs="float[batch, tokens, 8] x, float[8,8] w")
    assert node(flow, "out").weighted


def test_nodes_without_a_name_are_called_by_their_output():
    assert [node.name for node in view("y = Relu(x) out = Tanh(y)").nodes] == ["y", "out"]


def test_nodes_of_equal_names_get_distinct_names():
    model = ir.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] out) { y = Relu(x) out = Tanh(y) }'
        )
    )
    for each in model.graph:
        each.name = "same"
    assert [node.name for node in flow_graph(model).nodes] == ["same", "out"]


@pytest.mark.parametrize(
    ("scopes", "path"),
    [
        ("['', 'encoder', 'encoder.0', 'linear_3']", "encoder.0"),
        ("['', 'linear_3']", None),
        ("not a list", None),
        ("7", None),
        ("[]", None),
    ],
)
def test_module_paths_come_from_the_scopes_that_torch_notes(scopes, path):
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] out) { out = Relu(x) }'
    model = ir.from_proto(onnx.parser.parse_model(text))
    model.graph[0].metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    assert flow_graph(model).nodes[0].path == path


def test_shapes_that_are_not_recorded_are_inferred_without_touching_the_model():
    text = """<ir_version: 10, opset_import: ["" : 20]>
        g (float[batch, tokens, 8] x) => (float[batch, tokens, 8] out) { y = Relu(x) z = Add(x, y) out = Tanh(z) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    assert flow_graph(model).shapes["z"] == ("batch", "tokens", 8)
    assert model.graph[1].outputs[0].shape is None


def test_sums_fused_with_a_norm_become_two_nodes():
    body = "h = MatMul(x, w) out = com.microsoft.SkipLayerNormalization(x, h, g, b, c)"
    flow = view(body, weights="w=[8,8] g=[8] b=[8] c=[8]", domain="com.microsoft")
    total, norm = flow.nodes[1:]
    assert (total.name, total.kind, total.inputs, total.outputs) == ("out", "add", ("x", "h"), ("out/sum",))
    assert (norm.name, norm.kind, norm.inputs, norm.outputs) == ("out/norm", "norm", ("out/sum",), ("out",))
    assert flow.shapes["out/sum"] == ("batch", "tokens", 8)


def test_fused_sums_that_are_outputs_keep_the_output_name():
    body = "h = MatMul(x, w) n, u, v, s = com.microsoft.SkipSimplifiedLayerNormalization(x, h, g) out = Add(n, s)"
    flow = view(body, weights="w=[8,8] g=[8]", domain="com.microsoft", shapes="n s")
    assert node(flow, "s").kind == "add"
    assert node(flow, "n").inputs == ("s",)


def test_a_fused_sum_with_a_weight_is_no_sum_of_activations():
    flow = view("out = com.microsoft.SkipLayerNormalization(x, b, g)", weights="b=[8] g=[8]", domain="com.microsoft")
    assert [node.kind for node in flow.nodes] == ["other", "norm"]


def test_sums_hidden_in_operators_of_unknown_makeup_are_refused():
    body = "h = MatMul(x, w) out = com.microsoft.SkipGroupNorm(x, g, b, h)"
    with pytest.raises(BaseModelError, match=r"hidden inside fused operators.*1 `SkipGroupNorm`"):
        view(body, weights="w=[8,8] g=[8] b=[8]", domain="com.microsoft")


def test_sums_of_unknown_shape_are_refused_with_the_operator():
    body = "i = MatMul(x, w) f = com.microsoft.BiasGelu(i, b) h = MatMul(f, w) s = Add(x, h) out = Identity(s)"
    with pytest.raises(BaseModelError, match=r"1 `BiasGelu` of unknown output shape"):
        view(body, weights="w=[8,8] b=[8]", domain="com.microsoft")


@pytest.mark.parametrize("op", ["LayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_norms_without_epsilon_have_that_of_onnxruntime(op: str) -> None:
    """Schemas of the runtime say what a graph without the attribute computes."""
    schemas = [schema for schema in get_all_operator_schema() if schema.name == op]
    latest = max(schemas, key=lambda schema: schema.since_version)
    default = onnx.AttributeProto.FromString(latest.attributes["epsilon"]._default_value)
    assert DEFAULT_EPSILON.get(op, 1e-5) == pytest.approx(default.f, rel=1e-6)
