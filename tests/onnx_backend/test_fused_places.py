"""Values inside fused operators: sums before a norm, biases of linear layers; replaced like visible ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser
from replacing import adapter_at, scaled_plus

from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session

WIDTH, INNER = 16, 32
X = np.random.default_rng(1).standard_normal((2, 3, WIDTH)).astype(np.float32)

NORMS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
ACTIVATIONS = {"BiasGelu": "none", "FastGelu": "tanh"}


def two_blocks(norm: str, activation: str, *, fused: bool) -> onnx.ModelProto:
    """Return two pre-norm ffn blocks with a final norm; in the fused form, sums are inside norms."""
    rms = norm == "SkipSimplifiedLayerNormalization"
    weights = "g" if rms else "g, b"
    plain = f"SimplifiedLayerNormalization <axis = -1, epsilon = 1e-5> (%s, {weights})"
    plain = plain if rms else f"LayerNormalization <epsilon = 1e-5> (%s, {weights})"
    lines = [f"n0 = {plain % 'x'}"]
    for at, stream in enumerate(("x", "s0")):
        lines.append(f"up{at} = MatMul(n{at}, up)")
        if fused:
            lines.append(f"a{at} = com.microsoft.{activation}(up{at}, up_bias)")
            results = "n1, , , s0" if at == 0 else "n2"
            skipped = f"com.microsoft.{norm} <epsilon = 1e-5> ({stream}, d{at}, {weights}, down_bias)"
            lines += [f"d{at} = MatMul(a{at}, down)", f"{results} = {skipped}"]
        else:
            lines += [f"upb{at} = Add(up{at}, up_bias)"]
            lines += [f'a{at} = Gelu <approximate = "{ACTIVATIONS[activation]}"> (upb{at})']
            lines += [f"d{at} = MatMul(a{at}, down)", f"h{at} = Add(d{at}, down_bias)", f"s{at} = Add({stream}, h{at})"]
            lines += [f"n{at + 1} = {plain % f's{at}'}"]
    text = f"""<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>
        blocks (float[batch, tokens, {WIDTH}] x) => (float[batch, tokens, {WIDTH}] n2) {{ {" ".join(lines)} }}"""
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    shapes = {"up": (WIDTH, INNER), "down": (INNER, WIDTH), "up_bias": (INNER,), "down_bias": (WIDTH,)}
    made = {name: 0.2 * rng.standard_normal(shape) for name, shape in shapes.items()}
    made |= {"g": 1 + 0.2 * rng.standard_normal(WIDTH), **({} if rms else {"b": 0.2 * rng.standard_normal(WIDTH)})}
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in made.items())
    for name in {output for node in model.graph.node for output in node.output if output} - {"n2"}:
        width = INNER if name.startswith(("up", "a")) else WIDTH
        axes = ["batch", "tokens", width]
        model.graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes))
    return model


def opened(folder: Path, model: onnx.ModelProto) -> OnnxBase:
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return open_onnx(folder / "model.onnx")


def run(base: OnnxBase, replaced: str, other: str, site: str) -> list[np.ndarray]:
    """Return the results with a random adapter: of the exported graph, and of the split base."""
    adapter = adapter_at("a", scaled_plus(replaced, other), [site], base.sites, base.fingerprint)
    plan = plan_slots([adapter], base.sites)
    session = open_session(insert_slots(base, plan), base.folder)
    by_slots = run_session(session, {"x": X, **slot_tensors(plan, adapter)})["n2"]
    return [by_slots, CutRunner(base).run({"x": X}, adapter)["n2"]]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("replaced", "other", "site"),
    [
        ("y", "h", "layers.0.ffn"),
        ("y", "h", "layers.1.ffn"),
        ("u", "x", "layers.1.ffn"),
        ("h", "u", "layers.1.ffn"),
        ("h", "u", "layers.0.ffn.up"),
        ("u", "u", "layers.1.ffn.down"),
        ("h", "u", "layers.1.ffn.down"),
    ],
)
def test_a_place_inside_a_fused_operator_is_the_place_in_the_open(
    tmp_path: Path, norm: str, activation: str, replaced: str, other: str, site: str
) -> None:
    plain = opened(tmp_path / "plain", two_blocks(norm, activation, fused=False))
    fused = opened(tmp_path / "fused", two_blocks(norm, activation, fused=True))
    names = [place.name for place in plain.sites]
    assert [place.name for place in fused.sites] == names
    wanted, _ = run(plain, replaced, other, site)
    for found in run(fused, replaced, other, site):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    untouched = run_session(open_session(plain.model, plain.folder), {"x": X})["n2"]
    assert np.abs(wanted - untouched).max() > 0.01


def test_only_replaced_operators_are_unfused(tmp_path: Path) -> None:
    fused = opened(tmp_path / "fused", two_blocks("SkipLayerNormalization", "BiasGelu", fused=True))
    adapter = adapter_at("a", scaled_plus("y", "h"), ["layers.1.ffn"], fused.sites, fused.fingerprint)
    model = insert_slots(fused, plan_slots([adapter], fused.sites))
    before, after = (Counter(node.op_type for node in graph) for graph in (fused.model.graph, model.graph))
    assert (before["SkipLayerNormalization"], after["SkipLayerNormalization"]) == (2, 1)
    assert before["BiasGelu"] == after["BiasGelu"] == 2
