"""Graphs of other exporters: variants of a transformer, and unsupported graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from hand_edited import run, with_bottlenecks
from onnx import helper, numpy_helper
from tiny_onnx import MASK, random_adapter, save_tiny, tiny_model, token_inputs

from adapter_export.errors import BaseModelError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import BottleneckOptions, houlsby
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session

KIND = houlsby(BottleneckOptions("relu"))
X = np.random.default_rng(3).standard_normal((2, 5, 16)).astype(np.float32)

_FLAX_LAYER = """
    square{i} = Mul({x}, {x})
    mean{i} = ReduceMean <axes = [-1], keepdims = 1> (square{i})
    safe{i} = Add(mean{i}, epsilon)
    root{i} = Sqrt(safe{i})
    unit{i} = Div({x}, root{i})
    normed{i} = Mul(unit{i}, scale)
    q{i} = Einsum <equation = "btd,dhk->bthk"> (normed{i}, query)
    k{i} = Einsum <equation = "btd,dhk->bthk"> (normed{i}, key)
    v{i} = Einsum <equation = "btd,dhk->bthk"> (normed{i}, value)
    s{i} = Einsum <equation = "bqhk,bthk->bhqt"> (q{i}, k{i})
    p{i} = Softmax <axis = -1> (s{i})
    c{i} = Einsum <equation = "bhqt,bthk->bqhk"> (p{i}, v{i})
    o{i} = Einsum <equation = "bqhk,hkd->bqd"> (c{i}, output)
    attention{i} = Add(output_bias, o{i})
    middle{i} = Add({x}, attention{i})
    rows{i} = Reshape(middle{i}, flat)
    up{i} = Gemm(rows{i}, up, up_bias)
    active{i} = Relu(up{i})
    down{i} = Gemm(active{i}, down, output_bias)
    shape{i} = Shape(middle{i})
    ffn{i} = Reshape(down{i}, shape{i})
    {y} = Add(ffn{i}, middle{i})
"""
"""Einsum over heads as in JAX, a norm in small steps, a dense layer over rows as in Keras."""

_SHAPES = {
    **dict.fromkeys(("query", "key", "value"), (16, 4, 4)),
    **dict.fromkeys(("scale", "output_bias"), (16,)),
    "output": (4, 4, 16),
    "up": (16, 32),
    "up_bias": (32,),
    "down": (32, 16),
    "w": (16, 16),
}


def parsed(body: str, *, opset: int = 13, more: str = "") -> onnx.ModelProto:
    """Return a graph from `x` to `y`, both [batch, tokens, 16], with random weights."""
    text = f"""<ir_version: 8, opset_import: ["" : {opset}{more}]>
        g (float[batch, tokens, 16] x) => (float[batch, tokens, 16] y) {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    weights = {name: (rng.standard_normal(shape) * 0.3).astype(np.float32) for name, shape in _SHAPES.items()}
    weights |= {"epsilon": np.array(1e-6, np.float32), "flat": np.array([-1, 16])}
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in weights.items() if name in read
    )
    return model


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def adapted(base: OnnxBase, inputs: Mapping[str, np.ndarray]) -> tuple[Adapter, np.ndarray]:
    """Return an adapter, and the first output with it, after comparing with the reference."""
    adapter = random_adapter("a", KIND, base)
    plan = plan_slots([adapter], base.sites)
    session = open_session(insert_slots(base, plan), base.folder)
    output = base.outputs[0].name
    found = run_session(session, {**inputs, **slot_tensors(plan, adapter)}, [output])[output]
    np.testing.assert_allclose(found, CutRunner(base).run(inputs, adapter)[output], rtol=0, atol=1e-4)
    return adapter, found


def bottleneck(adapter: Adapter, site: str, h: np.ndarray) -> np.ndarray:
    down, bias, up, bias_up = (
        adapter.weights[f"{site}.{name}"] for name in ("down.weight", "down.bias", "up.weight", "up.bias")
    )
    return h + np.maximum(h @ down + bias, 0) @ up + bias_up


def test_adapters_work_in_einsum_and_flattened_dense_layers(tmp_path: Path) -> None:
    model = parsed(
        "".join(_FLAX_LAYER.format(i=i, x=x, y=y) for i, (x, y) in enumerate((("x", "half"), ("half", "y"))))
    )
    for node in model.graph.node:  # TensorFlow's tensor names
        for names in (node.input, node.output):
            names[:] = [f"{name}:0" if name not in ("x", "y") else name for name in names]
    for tensor in model.graph.initializer:
        tensor.name += ":0"
    path = saved(tmp_path, model)
    base = open_onnx(path)
    places = {f"layers.{i}.{role}": f"{role}{i}:0" for i in range(2) for role in ("attention", "ffn")}
    assert {site.name: site.h for site in base.sites.sublayers} == places
    assert [site.u for site in base.sites.sublayers] == ["normed0:0", "middle0:0", "normed1:0", "middle1:0"]
    adapter, found = adapted(base, {"x": X})
    (expected,) = run(with_bottlenecks(path, places, adapter.weights), {"x": X}, ["y"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_residual_sum_inside_a_gemm_is_opened(tmp_path: Path) -> None:
    body = (
        "r = Reshape(x, flat) u = Gemm(r, up, up_bias) a = Relu(u) s = Gemm(a, down, r) k = Shape(x) y = Reshape(s, k)"
    )
    model = parsed(body)
    base = open_onnx(saved(tmp_path, model))
    assert [(site.name, site.h) for site in base.sites.sublayers] == [("layers.0.ffn", "s/0")]
    adapter, found = adapted(base, {"x": X})
    w = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    h = np.maximum(X @ w["up"] + w["up_bias"], 0) @ w["down"]
    np.testing.assert_allclose(found, X + bottleneck(adapter, "layers.0.ffn", h), rtol=0, atol=1e-4)


@pytest.mark.parametrize("order", ["x, a, f", "a, f, x", "a, x, f"])
def test_a_sum_of_three_is_opened(tmp_path: Path, order: str) -> None:
    attention = "t = Transpose <perm = [0, 2, 1]> (x) s = MatMul(x, t) m = MatMul(s, x) a = MatMul(m, w)"
    model = parsed(f"{attention} f = MatMul(x, w) y = Sum({order})")
    base = open_onnx(saved(tmp_path, model))
    assert [(site.name, site.h) for site in base.sites.sublayers] == [
        ("layers.0.attention", "a"),
        ("layers.0.ffn", "f"),
    ]
    adapter, found = adapted(base, {"x": X})
    w = numpy_helper.to_array(model.graph.initializer[0])
    a, f = X @ X.transpose(0, 2, 1) @ X @ w, X @ w
    expected = X + bottleneck(adapter, "layers.0.attention", a) + bottleneck(adapter, "layers.0.ffn", f)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_scale_of_a_dynamic_quantisation_is_no_value_of_the_stream(tmp_path: Path) -> None:
    """Otherwise `h`, the product times the scale, would look like part of the stream, and not be a sublayer."""
    quantised = "q, s, z = DynamicQuantizeLinear(x) m = MatMulInteger(q, eight, z) c = Cast <to = 1> (m) f = Mul(c, s)"
    model = parsed(f"{quantised} y = Add(x, f)", opset=17)
    eight = np.random.default_rng(0).integers(-100, 100, (16, 16)).astype(np.int8)
    model.graph.initializer.append(numpy_helper.from_array(eight, "eight"))
    shaped = [helper.make_tensor_value_info("f", onnx.TensorProto.FLOAT, ["batch", "tokens", 16])]
    model.graph.value_info.extend(shaped)  # disables shape inference
    base = open_onnx(saved(tmp_path, model))
    assert [(site.name, site.h) for site in base.sites.sublayers] == [("layers.0.ffn", "f")]


_FFN = "f = MatMul(x, w) y = Add(x, f)"
_BRANCH = "then_branch = t () => (float[batch, tokens, 16] p) { p = MatMul(x, w) }"
_OTHER = "else_branch = e () => (float[batch, tokens, 16] n) { n = Neg(x) }"
_WHICH = "yes = Constant <value = bool {1}> ()"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("f = MatMul(x, w) y = Sum(x, f, scale)", "the owner of the weights is ambiguous.*weights among"),
        (f"{_WHICH} f = If <{_BRANCH}, {_OTHER}> (yes) y = Add(x, f)", "inside control flow.*1 `If`"),
        (f"o = acme.Sharpen(x) {_FFN}", "operators that ONNX Runtime does not have.*1 `Sharpen` of `acme`"),
        (f"o = RandomNormalLike(x) {_FFN}", "is random: each run draws new numbers.*`RandomNormalLike`"),
        (f"o = Erfc(x) {_FFN}", "operators that ONNX Runtime does not have.*1 `Erfc` of `ai.onnx`"),
    ],
    ids=["bias in a sum", "layers in an if", "operators of one's own", "numbers drawn", "made up"],
)
def test_unsupported_graphs_are_refused_by_name(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(BaseModelError, match=message):
        open_onnx(saved(tmp_path, parsed(body, more=', "acme" : 1')))


def test_operators_that_hide_a_residual_sum_are_named(tmp_path: Path) -> None:
    body = "f = MatMul(x, w) z = com.microsoft.BiasDropout(f, scale, x) y = Add(z, f)"
    with pytest.raises(BaseModelError, match=r"hidden inside fused operators.*1 `BiasDropout`"):
        open_onnx(saved(tmp_path, parsed(body, more=', "com.microsoft" : 1')))


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    model = parsed("y = local.Layer(x, w)", opset=17, more=', "local" : 1')
    nodes = [helper.make_node("MatMul", ["v", "m"], ["f"]), helper.make_node("Add", ["v", "f"], ["o"])]
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "Layer", ["v", "m"], ["o"], nodes, imports))
    base = open_onnx(saved(tmp_path, model))
    assert [site.name for site in base.sites.sublayers] == ["layers.0.ffn"]
    adapter, found = adapted(base, {"x": X})
    w = numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_allclose(found, X + bottleneck(adapter, "layers.0.ffn", X @ w), rtol=0, atol=1e-4)


class TestOldOpsets:
    """`LayerNormalization` requires opset 17, but ONNX Runtime has it in every opset, and its optimizer writes it."""

    AXES = "axis = Constant <value = int64[1] {1}> ()\n    bias = Unsqueeze(penalty, axis)"

    @pytest.mark.parametrize("opset", [7, 11, 12, 13, 16])
    def test_old_opsets_are_converted_with_a_note(self, tmp_path: Path, opset: int) -> None:
        plain = open_onnx(save_tiny(tmp_path))
        assert self.AXES in MASK
        mask = MASK if opset > 12 else MASK.replace(self.AXES, "bias = Unsqueeze <axes = [1]> (penalty)")
        model = tiny_model(mask=mask, opset=max(opset, 11))  # onnx infers shapes from opset 11 on
        model.opset_import[0].version = opset
        base = open_onnx(save_tiny(tmp_path, model))
        assert base.notes == (f"converted from opset {opset} to 17, which slots need; its outputs are unchanged",)
        assert (base.opset, base.inputs) == (17, plain.inputs)
        assert opset < 13 or base.fingerprint == plain.fingerprint  # the axis is not a constant below 13
        assert [(site.name, site.h) for site in base.sites.sublayers] == [
            (site.name, site.h) for site in plain.sites.sublayers
        ]
        inputs = token_inputs(5, 3)
        np.testing.assert_array_equal(adapted(base, inputs)[1], adapted(plain, inputs)[1])

    def test_unconvertible_operators_are_named(self, tmp_path: Path) -> None:
        norm = "n = BatchNormalization <spatial = 0> (x, scale, scale, scale, scale)"
        model = parsed(f"{norm} f = MatMul(n, w) y = Add(x, f)", opset=8)
        reason = r"cannot be converted to opset 17.*found Attribute spatial must have value 1;.*Export it again"
        with pytest.raises(BaseModelError, match=reason):
            open_onnx(saved(tmp_path, model))

    def test_converted_models_keep_external_weights(self, tmp_path: Path) -> None:
        model = tiny_model()
        model.opset_import[0].version = 14
        base = open_onnx(save_tiny(tmp_path, model))
        assert {type(value.const_value).__name__ for value in base.model.graph.initializers.values()} >= {
            "ExternalTensor"
        }


class TestUnknownShapes:
    """ONNX cannot infer the results of ONNX Runtime's operators; a run shows them."""

    BODY = "u = MatMul(x, w) a = com.microsoft.BiasGelu(u, scale) f = MatMul(a, w) y = Add(x, f)"

    def test_unknown_shapes_are_measured_by_two_runs(self, tmp_path: Path) -> None:
        base = open_onnx(saved(tmp_path, parsed(self.BODY, opset=17, more=', "com.microsoft" : 1')))
        assert [(site.name, site.h, site.width) for site in base.sites.sublayers] == [("layers.0.ffn", "f", 16)]
        gelu = next(node for node in base.model.graph if node.op_type == "BiasGelu").outputs[0]
        assert [dim if isinstance(dim, int) else None for dim in gelu.shape or ()] == [None, None, 16]
        adapted(base, {"x": X})

    def test_unmeasurable_shapes_are_refused(self, tmp_path: Path) -> None:
        body = self.BODY.replace("BiasGelu", "GemmFastGelu")  # the CPU has no kernel for it
        with pytest.raises(BaseModelError, match="1 `GemmFastGelu` of unknown output shape"):
            open_onnx(saved(tmp_path, parsed(body, opset=17, more=', "com.microsoft" : 1')))
