"""Fusion weights in the manifest match those of the fusion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from building import build_bundle
from small_bundle import build_small

from adapter_export.bundle.bundle_reader import read_source
from adapter_export.errors import AdapterError
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.manifest_json import read_manifest
from adapter_export.graph.compose import weighted_fusion
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.onnx_runner import CutRunner


def test_members_in_another_order_are_refused(tmp_path: Path) -> None:
    small = build_small(tmp_path, [])
    members = [read_adapter(small.folder / "adapters" / name) for name in ("topic", "tone")]
    fused, cases = weighted_fusion(*members, name="fused"), input_cases(small.base.inputs, seed=1)
    build_bundle(
        small.base, [fused], tmp_path / "fused", references=CutRunner(small.base), cases=cases[:1], variants=[]
    )
    (record,) = read_manifest(tmp_path / "fused").adapters
    assert record.mix is not None
    assert read_source(tmp_path / "fused", record).name == "fused"
    turned = replace(record, mix=replace(record.mix, members=record.mix.members[::-1]))
    with pytest.raises(AdapterError, match="does not match the manifest in its order of members"):
        read_source(tmp_path / "fused", turned)
    assert read_source(tmp_path / "fused", replace(record, mix=None)).name == "fused"
