"""Fused bases: the fusions, the same sites, the same results, and slots that nothing fuses away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from building import build_bundle
from onnx import helper
from small_encoder import ExportedEncoder
from tiny_onnx import random_adapter, save_tiny, tiny_model

from adapter_export.bundle.proof.proof_plan import Reference, plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.errors import BaseModelError
from adapter_export.graph.kinds import BottleneckOptions, houlsby, pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.quantise.optimize import check_deviation, optimize_base
from adapter_export.onnx_backend.quantise.rewritten import Deviation, deviations
from adapter_export.torch_backend.torch_runner import TorchRunner

SHAPES = [{"batch": 1, "tokens": 1}, {"batch": 3, "tokens": 7}]


@pytest.fixture(scope="module", params=[False, True], ids=["post-norm", "pre-norm"])
def plain(
    request: pytest.FixtureRequest, exported_encoder: Callable[[bool], ExportedEncoder]
) -> tuple[OnnxBase, TorchRunner]:
    base = exported_encoder(request.param)
    return base.in_onnx, TorchRunner(base.in_torch)


@pytest.fixture(scope="module")
def fused(plain: tuple[OnnxBase, TorchRunner], tmp_path_factory: pytest.TempPathFactory) -> OnnxBase:
    made, fusions = optimize_base(plain[0], tmp_path_factory.mktemp("fused"))
    assert fusions["bias_gelu"] >= 1
    return made


def test_optimization_fuses_operators_and_keeps_the_sites(plain: tuple[OnnxBase, TorchRunner], fused: OnnxBase) -> None:
    ops = Counter(node.op_type for node in fused.model.graph)
    assert ops["SkipLayerNormalization"] == ops["BiasGelu"] == 0  # slower than the separate operators
    assert ops["Gelu"] >= 1
    assert len(fused.model.graph) < len(plain[0].model.graph)
    found, expected = ([(s.name, s.role, s.width, s.path) for s in base.sites.sublayers] for base in (fused, plain[0]))
    assert found == expected
    assert (fused.fingerprint, fused.inputs, fused.outputs) == (
        plain[0].fingerprint,
        plain[0].inputs,
        plain[0].outputs,
    )


def test_fused_base_computes_what_the_plain_base_computes(plain: tuple[OnnxBase, TorchRunner], fused: OnnxBase) -> None:
    found = deviations(plain[0], fused, input_cases(fused.inputs, seed=0, max_tokens=7))
    assert [each.output for each in found] == ["hidden", "pooled"]
    for each in found:
        assert each.scale > 0
        check_deviation(each)


def test_bundle_of_a_fused_base_passes_the_check(
    plain: tuple[OnnxBase, TorchRunner], fused: OnnxBase, tmp_path: Path
) -> None:
    adapters = [
        random_adapter("a", houlsby(BottleneckOptions("gelu")), fused, labels="abc"),
        random_adapter("b", pfeiffer(BottleneckOptions("relu")), fused, bottleneck=3, labels="ab"),
    ]
    cases = input_cases(fused.inputs, seed=1, max_tokens=7)
    manifest = build_bundle(fused, adapters, tmp_path / "bundle", references=plain[1], cases=cases)
    assert manifest.base_precision == "fp32"
    report = prove(plan_check(tmp_path / "bundle"), Reference("model.pt", plain[1]))
    assert report.passed
    plan = plan_check(tmp_path / "bundle", brief=True)
    cut = prove(plan, Reference("base.onnx", CutRunner(fused)))
    assert cut.passed


def test_a_deviation_beyond_rounding_is_refused() -> None:
    close = Deviation("hidden", absolute=1e-6, padding=1e-6, scale=1.0, cosine=1.0, allowed=1e-5)
    check_deviation(close)
    for largest in (2e-5, float("nan")):
        for wrong in (replace(close, absolute=largest), replace(close, padding=largest)):
            with pytest.raises(BaseModelError, match="does not match the original"):
                check_deviation(wrong)


def test_deviations_of_a_different_base_are_measured(base: OnnxBase, tmp_path: Path) -> None:
    other = open_onnx(save_tiny(tmp_path, tiny_model(seed=1)))
    (found,) = deviations(base, other, input_cases(base.inputs, seed=0, shapes=SHAPES))
    assert found.absolute > 100 * found.allowed
    assert np.isfinite(found.absolute)
    assert found.is_far


def test_padding_is_measured_apart(base: OnnxBase, tmp_path: Path) -> None:
    """A base that differs only at padded positions is close, but a fusion must not differ even there."""
    model = tiny_model()
    (last,) = (node for node in model.graph.node if "hidden" in node.output)
    last.output[0] = "inner"
    model.graph.node.extend(
        [
            helper.make_node("Constant", [], ["last_axis"], value_ints=[2]),
            helper.make_node("Unsqueeze", ["real", "last_axis"], ["shown"]),
            helper.make_node("Mul", ["inner", "shown"], ["hidden"]),
        ]
    )
    other = open_onnx(save_tiny(tmp_path, model))
    (found,) = deviations(base, other, input_cases(base.inputs, seed=0, shapes=SHAPES))
    assert found.absolute <= found.allowed < found.padding
    assert found.cosine == pytest.approx(1.0)
    assert "is close to the original base" in str(found)
    with pytest.raises(BaseModelError, match="does not match the original"):
        check_deviation(found)
