"""`model_version`: one number for a base with its slots, in the manifest, the graph and the adapter files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
from building import in_precision
from tiny_onnx import build_tiny, random_adapter, save_tiny

from adapter_export.bundle.write import model_version
from adapter_export.format.manifest_json import read_manifest
from adapter_export.graph.kinds import BottleneckOptions, houlsby
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.slots import SlotPlan, plan_slots
from adapter_export.sites.site_map import GivenSites


def _plan(base: OnnxBase, activation: str = "relu") -> SlotPlan:
    return plan_slots([random_adapter("a", houlsby(BottleneckOptions(activation)), base)], base.sites)


def test_model_version_is_equal_in_graph_and_adapter_files(tmp_path: Path) -> None:
    bundle = build_tiny(tmp_path)
    manifest = read_manifest(bundle)
    assert 1 < manifest.model_version < 2**31
    assert ort.InferenceSession(bundle / "model.onnx").get_modelmeta().version == manifest.model_version
    for record in manifest.adapters:
        assert ort.AdapterFormat.read_adapter(str(bundle / record.onnx_adapter)).get_model_version() == (
            manifest.model_version
        )


def test_model_version_differs_by_base_topology_and_site_map(base: OnnxBase) -> None:
    mapped = replace(base, given_sites=GivenSites("map.json", "sha256:" + "0" * 64, {}, {}))
    numbers = [
        model_version(base, _plan(base)),
        model_version(replace(base, fingerprint="sha256:1"), _plan(base)),
        model_version(base, _plan(base, "tanh")),
        model_version(mapped, _plan(base)),
    ]
    assert len(set(numbers)) == len(numbers)


def test_model_version_is_equal_in_each_precision(base: OnnxBase, tmp_path: Path) -> None:
    again = open_onnx(save_tiny(tmp_path))
    (tmp_path / "made").mkdir()
    half = in_precision(again, "fp16", tmp_path / "made")
    assert model_version(base, _plan(base)) == model_version(again, _plan(again)) == model_version(half, _plan(half))
