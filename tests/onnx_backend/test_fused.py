"""Residual sums inside fused operators: found and used like visible ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from tiny_onnx import WIDTH, random_adapter, save_tiny, tiny_model, token_inputs

from adapter_export.errors import BaseModelError
from adapter_export.graph.kinds import BottleneckOptions, houlsby, parallel
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.rewrite.insert import insert_slots, site_values
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session

INPUTS = token_inputs(5, 3, 1)
KINDS = (houlsby(BottleneckOptions("gelu")), parallel(BottleneckOptions("relu")))


def fuse(model: onnx.ModelProto, *, swapped: bool = False) -> onnx.ModelProto:
    """Fuse every `bias + h + x` and the next norm into one `SkipLayerNormalization`, in place.

    Args:
        model: a result of `tiny_model`.
        swapped: pass the sublayer first and the residual stream second, as some tools do.
    """
    made = {node.output[0]: node for node in model.graph.node}
    gone = []
    for norm in [node for node in model.graph.node if node.op_type == "LayerNormalization"]:
        total = made[norm.input[0]]
        h, x = (made[total.input[0]], total.input[1])
        bare, bias = h.input
        gone += [total, h]
        summands = (bare, x) if swapped else (x, bare)
        norm.CopyFrom(
            helper.make_node(
                "SkipLayerNormalization",
                [*summands, *norm.input[1:], bias],
                [norm.output[0], "", "", total.output[0]],
                name=norm.output[0],
                domain="com.microsoft",
                epsilon=1e-5,
            )
        )
    for node in gone:
        model.graph.node.remove(node)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def opened(folder: Path, model: onnx.ModelProto) -> OnnxBase:
    folder.mkdir()
    return open_onnx(save_tiny(folder, model))


@pytest.fixture(params=[False, True], ids=["stream first", "sublayer first"])
def bases(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[OnnxBase, OnnxBase]:
    """Return a base without and with fusions."""
    return (
        opened(tmp_path / "open", tiny_model()),
        opened(tmp_path / "fused", fuse(tiny_model(), swapped=request.param)),
    )


def test_the_same_sites_are_found(bases):
    plain, fused = bases
    facts = [
        [(site.name, site.width, site.x, site.u, site.followed_by) for site in base.sites.sublayers] for base in bases
    ]
    assert facts[0] == facts[1]
    assert fused.sites.final == plain.sites.final == "hidden"
    assert [site.h for site in fused.sites.sublayers] == ["attended0", "down0", "attended1", "down1"]


def test_the_bias_of_a_fused_sum_belongs_to_h(bases):
    """An adapter that read the tensor before it would be silently wrong."""
    plain, fused = bases
    for kind in KINDS:
        expected = CutRunner(plain).run(INPUTS, random_adapter("a", kind, plain, labels="abc"))
        adapter = random_adapter("a", kind, fused, labels="abc")
        plan = plan_slots([adapter], fused.sites)
        session = open_session(insert_slots(fused, plan), fused.folder)
        found = run_session(session, {**INPUTS, **slot_tensors(plan, adapter)})
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-5)


def test_the_reference_of_a_fused_base_is_that_of_the_base(bases):
    plain, fused = bases
    for kind in KINDS:
        expected = CutRunner(plain).run(INPUTS, random_adapter("a", kind, plain))
        found = CutRunner(fused).run(INPUTS, random_adapter("a", kind, fused))
        np.testing.assert_allclose(found["hidden"], expected["hidden"], rtol=0, atol=2e-5)


def test_only_the_biases_of_sites_with_slots_are_taken_out(tmp_path):
    base = opened(tmp_path / "fused", fuse(tiny_model()))
    adapter = random_adapter("a", parallel(BottleneckOptions("relu")), base)
    model = insert_slots(base, plan_slots([adapter], base.sites))
    biases = {node.name: node.inputs[4] for node in model.graph if node.op_type == "SkipLayerNormalization"}
    assert [value is None for value in biases.values()] == [False, True, False, True]
    assert site_values(model)["layers.0.ffn"]["h"] == "adapter.layers.0.ffn/h"


def test_fused_operators_without_a_bias_are_kept_bit_for_bit(tmp_path):
    model = fuse(tiny_model())
    for node in model.graph.node:
        if node.op_type == "SkipLayerNormalization":
            del node.input[4:]
    base = opened(tmp_path / "fused", model)
    adapter = random_adapter("a", KINDS[0], base)
    plan = plan_slots([adapter], base.sites)
    session = open_session(insert_slots(base, plan), base.folder)
    untouched = run_session(open_session(ir.load(base.path), base.folder), INPUTS)
    np.testing.assert_array_equal(run_session(session, INPUTS)["hidden"], untouched["hidden"])


def test_a_bias_behind_two_parallel_sublayers_is_refused(tmp_path):
    """The owner of the bias is ambiguous."""
    parallel_block = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[batch, tokens, {WIDTH}] x) => (float[batch, tokens, {WIDTH}] out) {{
            t = Transpose <perm = [0, 2, 1]> (x)
            s = MatMul(x, t)
            m = MatMul(s, x)
            a = MatMul(m, w)
            f = MatMul(x, w)
            b = Add(a, f)
            out = com.microsoft.SkipLayerNormalization(x, b, g, g, g)
        }}"""
    )
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((WIDTH, WIDTH)), "g": rng.standard_normal(WIDTH)}
    parallel_block.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()
    )
    for name in ("m", "a", "f", "b"):
        parallel_block.graph.value_info.append(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", "tokens", WIDTH])
        )
    with pytest.raises(BaseModelError, match="its owner is ambiguous"):
        opened(tmp_path / "parallel", parallel_block)
