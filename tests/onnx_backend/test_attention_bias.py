"""Bias of query, key and value inside fused attentions: it belongs to the outputs of these layers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper, parser
from replacing import adapter_at, scaled, scaled_plus
from torch import Tensor

from adapter_export.errors import BaseModelError
from adapter_export.graph.adapter import Adapter
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.rewrite.insert import insert_slots, site_values
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session

WIDTH, HEADS = 16, 2
X = np.random.default_rng(1).standard_normal((2, 5, WIDTH)).astype(np.float32)
LAYERS = ("query", "key", "value")

FUSED = "c = com.microsoft.MultiHeadAttention <num_heads = 2> (query, key, value, bias)"


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {f"w_{name}": rng.standard_normal((WIDTH, WIDTH)) for name in (*LAYERS, "output")}
    made["bias"] = 2 * rng.standard_normal(3 * WIDTH)
    return {name: (0.3 * array).astype(np.float32) for name, array in made.items()}


def block(attention: str = FUSED, more: str = "", *, used: tuple[str, ...] = LAYERS) -> onnx.ModelProto:
    """Return `x` plus attention of `x`, with the biases of three linear layers inside the attention."""
    products = " ".join(f"{name} = MatMul(x, w_{name})" for name in used)
    text = f"""<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>
        block (float[batch, tokens, {WIDTH}] x) => (float[batch, tokens, {WIDTH}] y) {{
            {products} {more} {attention} o = MatMul(c, w_output) y = Add(x, o) }}"""
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights().items())
    for name in {output for node in model.graph.node for output in node.output} - {"y"}:
        axes = ["batch", "tokens", WIDTH]
        model.graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes))
    return model


def opened(folder: Path, model: onnx.ModelProto) -> OnnxBase:
    onnx.save(model, folder / "model.onnx")
    return open_onnx(folder / "model.onnx")


def in_torch(adapter: Adapter | None = None) -> np.ndarray:
    """Compute the same with every bias in its layer."""
    tensors = {name: torch.from_numpy(array) for name, array in weights().items()}
    x = torch.from_numpy(X)

    def act(name: str, u: Tensor, h: Tensor) -> Tensor:
        site = f"layers.0.attention.{name}"
        if adapter is None or site not in adapter.placements:
            return h
        own = {key: torch.from_numpy(value) for key, value in adapter.parameters(site).items()}
        low = torch.tanh(u @ own["down.weight"]) @ own["up.weight"] if "up.weight" in own else 0.0
        return h * own["scale.weight"] + low

    q, k, v = (
        act(name, x, x @ tensors[f"w_{name}"] + bias)
        for name, bias in zip(LAYERS, tensors["bias"].split(WIDTH), strict=True)
    )
    heads = (value.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2) for value in (q, k, v))
    mixed = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return (x + act("output", mixed, mixed @ tensors["w_output"])).numpy()


@pytest.mark.parametrize("graph", [scaled("h"), scaled_plus("h", "u")], ids=["ia3", "low rank"])
@pytest.mark.parametrize("names", [("query",), ("key",), ("value",), LAYERS, ("value", "output")])
def test_an_adapter_reads_the_output_with_its_bias(tmp_path, graph, names):
    base = opened(tmp_path, block())
    sites = [f"layers.0.attention.{name}" for name in names]
    adapter = adapter_at("a", graph, sites, base.sites, base.fingerprint)
    plan = plan_slots([adapter], base.sites)
    session = open_session(insert_slots(base, plan), base.folder)
    wanted = in_torch(adapter)
    assert np.abs(wanted - in_torch()).max() > 0.1
    np.testing.assert_allclose(run_session(session, {"x": X})["y"], in_torch(), rtol=0, atol=1e-5)
    found = run_session(session, {"x": X, **slot_tensors(plan, adapter)})["y"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(CutRunner(base).run({"x": X}, adapter)["y"], wanted, rtol=0, atol=1e-5)


def test_the_attention_stays_fused_and_loses_its_bias_once(tmp_path):
    base = opened(tmp_path, block())
    adapter = adapter_at("a", scaled("h"), [f"layers.0.attention.{name}" for name in LAYERS], base.sites, "f")
    model = insert_slots(base, plan_slots([adapter], base.sites))
    (attention,) = (node for node in model.graph if node.op_type == "MultiHeadAttention")
    assert attention.inputs[3] is None
    assert Counter(node.op_type for node in model.graph)["Slice"] == 3
    assert site_values(model)["layers.0.attention.key"]["h"] != "key"


def test_unread_biases_stay_in_the_fused_attention(tmp_path):
    base = opened(tmp_path, block())
    adapter = adapter_at("a", scaled("h"), ["layers.0.attention.output"], base.sites, base.fingerprint)
    model = insert_slots(base, plan_slots([adapter], base.sites))
    assert [node.inputs[3].name for node in model.graph if node.op_type == "MultiHeadAttention"] == ["bias"]


@pytest.mark.parametrize(
    ("attention", "more", "used"),
    [
        (FUSED.replace("value", "key"), "", ("query", "key")),
        (FUSED, "other = Relu(query) ", LAYERS),
        (FUSED.replace("(query", "(half"), "half = Mul(query, two)", LAYERS),
    ],
    ids=["one layer for keys and values", "somebody else reads it", "scaled before the bias"],
)
def test_a_bias_that_cannot_be_given_back_is_refused(tmp_path, attention, more, used):
    model = block(attention, more, used=used)
    model.graph.initializer.append(numpy_helper.from_array(np.array(2.0, np.float32), "two"))
    if "other" in more:
        model.graph.output.append(helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, None))
    base = opened(tmp_path, model)
    (site,) = (site.name for site in base.sites if site.h == "query")
    adapter = adapter_at("a", scaled("h"), [site], base.sites, base.fingerprint)
    with pytest.raises(BaseModelError, match="contains the bias of the preceding linear layer") as error:
        insert_slots(base, plan_slots([adapter], base.sites))
    assert "MultiHeadAttention" in str(error.value)


def test_another_operator_that_reads_a_vector_is_refused(tmp_path):
    base = opened(tmp_path, block("b = com.microsoft.BiasDropout (query, bias) " + FUSED.replace("(query", "(b")))
    adapter = adapter_at("a", scaled("h"), ["layers.0.attention.query"], base.sites, base.fingerprint)
    with pytest.raises(BaseModelError, match="`b`, BiasDropout: contains the bias"):
        insert_slots(base, plan_slots([adapter], base.sites))
