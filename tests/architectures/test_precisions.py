"""Architectures whose graphs the quantisers and fusions of others stumble over, each through a whole build.

float16 once killed the process in two of them: ONNX Runtime 1.32 cannot take a cast between a transpose of the batch
and a product, in the base or in front of an adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from building import build_bundle, in_precision
from exported_bases import ExportedBase
from tiny_onnx import random_adapter

from adapter_export.format.precision import PrecisionName
from adapter_export.graph.kinds import houlsby
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.quantise.optimize import check_deviation, optimize_base
from adapter_export.onnx_backend.quantise.rewritten import deviations
from adapter_export.runtime import Bundle


@pytest.mark.parametrize(
    ("name", "treatment"),
    [
        ("torch_post_norm", "fp16"),  # the batch is turned behind attention: what an adapter reads
        ("torch_pre_norm", "fp16"),  # and behind a norm: what a product of the base reads
        ("vit", "fp16"),  # a float input, cast before the first node
        ("gpt2", "optimize"),  # `Gemm` behind attention
        ("gpt2", "int4-weights"),  # all products are `Gemm`
    ],
)
def test_a_bundle_is_built_and_loads_at_every_level(
    name: str, treatment: PrecisionName | Literal["optimize"], tmp_path: Path, exported: Callable[[str], ExportedBase]
) -> None:
    base = exported(name).in_onnx
    (tmp_path / "made").mkdir()
    cases = input_cases(base.inputs, seed=0, max_tokens=7)
    if treatment == "optimize":
        made, _ = optimize_base(base, tmp_path / "made")
        for found in deviations(base, made, cases):
            check_deviation(found)
    else:
        made = in_precision(base, treatment, tmp_path / "made")
    adapter = random_adapter("a", houlsby(), made, labels="abc")
    manifest = build_bundle(made, [adapter], tmp_path / "bundle", references=CutRunner(made), cases=cases)
    assert manifest.base_precision == treatment.replace("optimize", "fp32")
    for level in ("none", "basic", "all"):
        found = Bundle.open(tmp_path / "bundle").session(optimization=level).run(cases[-1].arrays, "a")
        assert found["logits"].shape[1] == 3
