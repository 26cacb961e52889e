"""The real base: twelve sublayers of width 384 in both of its graphs."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.base.torch_base import load_base
from adapter_export.torch_backend.fx_view import flow_graph


@pytest.fixture(scope="module", params=["torch", "onnx"])
def sites(minilm_archive: Path, minilm_graph: Path, request: pytest.FixtureRequest) -> SiteMap:
    if request.param == "onnx":
        return open_onnx(minilm_graph).sites
    return discover(flow_graph(load_base(minilm_archive).flat))


def test_minilm_has_attention_and_ffn_in_six_layers(sites):
    assert [site.name for site in sites.sublayers] == [
        "layers.0.attention",
        "layers.0.ffn",
        "layers.1.attention",
        "layers.1.ffn",
        "layers.2.attention",
        "layers.2.ffn",
        "layers.3.attention",
        "layers.3.ffn",
        "layers.4.attention",
        "layers.4.ffn",
        "layers.5.attention",
        "layers.5.ffn",
    ]


def test_all_sites_are_384_wide(sites):
    assert {site.width for site in sites.sublayers} == {sites.width} == {384}


def test_the_paths_are_those_of_the_output_projections(sites):
    assert [site.path for site in sites.of_roles(("ffn",))] == [
        f"encoder.layer.{layer}.output.dense" for layer in range(6)
    ]
