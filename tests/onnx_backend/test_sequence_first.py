"""Sites with tokens before the batch: a bank transposes them if the order is known, and is rejected otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from building import build_bundle
from onnx import helper, numpy_helper, parser
from replacing import adapter_at, scaled_plus

from adapter_export.errors import BaseModelError
from adapter_export.graph.compose import weighted_fusion
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner

WIDTH = 8


def sequence_first(folder: Path, axes: list[str | None]) -> OnnxBase:
    """Write an ffn that reads [tokens, batch, width], with these axes recorded there."""
    model = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        g (float[batch, tokens, {WIDTH}] x) => (float[batch, tokens, {WIDTH}] y) {{
            t = Transpose <perm = [1, 0, 2]> (x)
            up = MatMul(t, w) bent = Relu(up) down = MatMul(bent, v)
            h = Transpose <perm = [1, 0, 2]> (down)
            y = Add(x, h) }}"""
    )
    rng = np.random.default_rng(0)
    model.graph.initializer.extend(
        numpy_helper.from_array(0.4 * rng.standard_normal((WIDTH, WIDTH)).astype(np.float32), name) for name in "wv"
    )
    for name in ("t", "up", "bent", "down"):
        model.graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [*axes, WIDTH]))
    model.graph.value_info.append(
        helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["batch", "tokens", WIDTH])
    )
    onnx.save(model, folder / "model.onnx")
    return open_onnx(folder / "model.onnx")


def build(base: OnnxBase, out: Path, variants: list[str] | None, *, at: str = "down") -> object:
    (site,) = (site.name for site in base.sites if site.h == at)
    adapters = [
        adapter_at(name, scaled_plus("h", "u"), [site], base.sites, base.fingerprint) for name in ("one", "two")
    ]
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 3, "tokens": 4}, {"batch": 1, "tokens": 2}])
    return build_bundle(base, adapters, out, references=CutRunner(base), cases=cases, variants=variants)


def test_layers_that_read_tokens_first_are_known_by_their_axes(tmp_path):
    sites = sequence_first(tmp_path, ["tokens", "batch"]).sites
    assert [(site.name, site.sequence_first) for site in sites] == [
        ("layers.0.ffn.up", True),
        ("layers.0.ffn.down", True),
        ("layers.0.ffn", False),
    ]


def test_sequence_first_is_known_behind_a_transposition(tmp_path):
    sites = sequence_first(tmp_path, [None, None]).sites
    assert [site.name for site in sites if site.sequence_first] == ["layers.0.ffn.up"]


@pytest.mark.parametrize("axes", [["tokens", "batch"], [None, None]])
def test_bank_transposes_sequence_first_inputs(tmp_path, axes):
    """The build compares mixed batches with separate rows."""
    manifest = build(sequence_first(tmp_path, axes), tmp_path / "bundle", ["slots", "bank"], at="up")
    assert sorted(manifest.graphs) == ["bank", "slots"]


def test_where_nothing_is_known_the_mixed_batch_refuses(tmp_path):
    base = sequence_first(tmp_path, [None, None])
    assert "layers.0.ffn.down" in [site.name for site in base.sites]
    with pytest.raises(BaseModelError, match=r'cannot separate rows.*variants=\["slots", "inputs"\]'):
        build(base, tmp_path / "bundle", ["slots", "bank"])
    assert not (tmp_path / "bundle").exists()
    assert sorted(build(base, tmp_path / "bundle", ["slots", "inputs"]).graphs) == ["inputs", "slots"]


@pytest.mark.parametrize("at", ["up", "down"])
def test_fusion_at_sequence_first_sites_is_refused(tmp_path, at):
    base = sequence_first(tmp_path, [None, None])
    (site,) = (site.name for site in base.sites if site.h == at)
    one, two = (adapter_at(name, scaled_plus("h", "u"), [site], base.sites, base.fingerprint) for name in ("a", "b"))
    fused, variants = weighted_fusion(one, two, name="fused"), ["slots", "inputs"]
    for tokens in (3, 4):  # with as many tokens as rows, ONNX Runtime reports no error
        cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 3, "tokens": tokens}])
        with pytest.raises(BaseModelError, match=r"rows cannot have separate weights.*compose average"):
            build_bundle(base, [fused], tmp_path / "b", references=CutRunner(base), cases=cases, variants=variants)
