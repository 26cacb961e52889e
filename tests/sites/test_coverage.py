"""No base gives a part of its sublayers without a word: all are found, or those that are not are named."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from partial_bases import BASES

import adapter_export as ae
from adapter_export.errors import NoSitesError
from adapter_export.onnx_backend.base.base import open_onnx
from adapter_export.onnx_backend.base.flow import flow_graph as onnx_flow
from adapter_export.sites.discover import discover
from adapter_export.sites.site import Coverage
from adapter_export.sites.site_map import check_complete
from adapter_export.torch_backend.view import flow_graph as torch_flow

PARTIAL = {
    "hiera": ("model.encoder.stages.1.layers.0.attn.qkv", "both computed through weights"),
    "hiera_1_1": ("model.encoder.stages.1.layers.0.attn.qkv", "not on the residual stream"),
    "detr": ("model.decoder.layers.0.encoder_attn.k_proj", "no sum adds what they compute"),
    "perceiver": ("model.encoder.cross_attention.attention.self.key", "no sum adds what they compute"),
    "addmm": ("model.1.up", "is no sum that can be followed"),
}
"""A layer that is named, and the reason."""

OTHER_SUMS = ["subtracting", "alpha", "lerp", "addcmul", "stacked", "from_start", "all_addmm"]
"""Bases of four sublayers whose residual sums are written otherwise than as `x + h`."""

CHANNELS_FIRST = ["squeezebert", "channels_first"]


@pytest.fixture(params=["torch", "onnx"])
def coverage(request, exported):
    def get(name: str) -> Coverage:
        base = exported(name)
        in_torch = request.param == "torch"
        flow = torch_flow(base.torch_graph()) if in_torch else onnx_flow(base.onnx_graph())
        return discover(flow).coverage

    return get


@pytest.mark.parametrize("name", PARTIAL)
def test_what_is_not_placed_is_named_with_the_reason(coverage, name):
    found = coverage(name)
    layer, reason = PARTIAL[name]
    assert not found.is_complete
    assert any(layer in each.layers and reason in each.reason for each in found.unplaced)
    assert str(found) == f"{found.found} of at least {found.found + len(found.unplaced)} sublayers"


@pytest.mark.parametrize("name", OTHER_SUMS)
def test_a_sum_of_another_form_is_followed_or_refused(coverage, name):
    try:
        found = coverage(name)
    except NoSitesError:
        return
    assert (found.found == 4) == found.is_complete
    assert found.is_complete or all(each.reason for each in found.unplaced)


@pytest.mark.parametrize("name", CHANNELS_FIRST)
def test_a_width_that_is_the_number_of_tokens_is_refused(coverage, name):
    with pytest.raises(NoSitesError, match=r"not on the last axis .* 16, 7\]"):
        coverage(name)


def test_a_dropout_between_parallel_sum_and_residual_hides_nothing(exported):
    base = exported("falcon")
    maps = discover(torch_flow(base.torch_graph())), discover(onnx_flow(base.onnx_graph()))
    expected = [f"layers.{layer}.{role}" for layer in range(2) for role in ("attention", "ffn")]
    for found in maps:
        assert [site.name for site in found.sublayers] == expected
        assert str(found.coverage) == "4 of 4 sublayers"


def test_the_last_sum_counts_where_the_older_exporter_renames_its_axes(exported, tmp_path: Path):
    base = exported("beit")
    path = tmp_path / "beit.onnx"
    ir.save(base.legacy_onnx_graph(path), path)
    found = open_onnx(path).sites
    assert [site.name for site in found.sublayers] == [
        f"layers.{layer}.{role}" for layer in range(2) for role in ("attention", "ffn")
    ]
    assert (str(found.coverage), found.final) == ("4 of 4 sublayers", "out")


def test_a_part_of_a_base_is_not_built_on(tmp_path: Path):
    torch.manual_seed(0)
    module = BASES["addmm"].build(0.2)
    example = {"values": torch.randn(2, 7, 16)}
    base = ae.capture(module, tmp_path / "model.pt", example_inputs=example, axes=BASES["addmm"].axes())
    with pytest.raises(NoSitesError, match=r"not every .* `addmm_1` joins them to `add_1` by `addmm`") as caught:
        ae.attach(base, kind="houlsby", bottleneck=4)
    assert "--site-map" in caught.value.sentence("shell")
    document = base.sites.to_json()["coverage"]
    assert (document["found"], document["expected"]) == (1, 1 + len(document["unplaced"]))
    base.sites.write_site_map(tmp_path / "sites.json")
    chosen = ae.open_base(tmp_path / "model.pt", site_map=tmp_path / "sites.json")
    with ae.attach(chosen, kind="houlsby", bottleneck=4) as adapter:
        assert len(adapter.to_adapter().placements) == 1
    with pytest.raises(NoSitesError, match="not every sublayer"):
        check_complete(chosen.sites.map, None)
