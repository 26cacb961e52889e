"""No base gives a part of its sublayers without a word: all are found, or those that are not are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from flows import flow
from partial_bases import BASES

import adapter_export as ae
from adapter_export.errors import NoSitesError
from adapter_export.graph.adapter import Adapter
from adapter_export.onnx_backend.base.flow import flow_graph as onnx_flow
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.sites.discover import discover
from adapter_export.sites.site import Coverage
from adapter_export.sites.site_map import GivenSites, sites_of
from adapter_export.torch_backend.fx_view import flow_graph as torch_flow

COMPLETE = {
    "subtracting": 4,
    "all_addmm": 4,
    "from_start": 4,
    "falcon": 4,
    "hiera": 8,
    "detr": 10,
    "perceiver": 6,
}
"""Bases with sums, starts or stages of other forms, and the number of sublayers that a person counts in each."""

CHANNELS_FIRST = ["squeezebert", "channels_first"]


@pytest.fixture(params=["torch", "onnx"])
def coverage(request, exported):
    def get(name: str) -> Coverage:
        base = exported(name)
        in_torch = request.param == "torch"
        flow = torch_flow(base.torch_graph()) if in_torch else onnx_flow(base.onnx_graph())
        return discover(flow).coverage

    return get


def test_what_is_not_placed_is_named_with_the_reason(coverage):
    found = coverage("multiplied")
    first, *_ = found.unplaced
    assert "model.0.down" in first.layers
    assert "by `mul`, which is no sum that can be followed" in first.reason.lower()
    assert str(found) == f"{found.found} of at least {found.found + len(found.unplaced)} sublayers"


@pytest.mark.parametrize("name", COMPLETE)
def test_all_sublayers_are_found(coverage, name):
    assert str(coverage(name)) == f"{COMPLETE[name]} of {COMPLETE[name]} sublayers"


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


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> ae.Base:
    """A base of which not every sublayer is placed."""
    example = {"values": torch.randn(2, 7, 16)}
    path = tmp_path_factory.mktemp("part") / "model.pt"
    module = BASES["multiplied"].build(0.2)
    return ae.capture(module, path, example_inputs=example, axes=BASES["multiplied"].axes())


VERBS = {
    "train": lambda base, _, folder: ae.train(base, folder / "train.tsv", folder / "a"),
    "attach": lambda base, *_: ae.attach(base, kind="houlsby", bottleneck=4),
    "pack": lambda base, adapter, _: ae.pack(adapter.weights, base, kind="houlsby"),
    "import": lambda base, _, folder: ae.import_adapterhub(folder, base),
    "import peft": lambda base, _, folder: ae.import_peft(folder, base),
    "build": lambda base, adapter, folder: ae.build(base, [adapter], folder / "bundle"),
}


@pytest.fixture(scope="module")
def adapter(part: ae.Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Path]:
    """An adapter at the sites that a person named, and the site map."""
    path = tmp_path_factory.mktemp("part") / "sites.json"
    part.sites.write_site_map(path)
    chosen = ae.open_base(part.path, site_map=path)
    with ae.attach(chosen, kind="houlsby", bottleneck=4) as attached:
        made = attached.to_adapter()
    assert len(made.placements) == len(part.sites.map.sublayers)
    return made, path


@pytest.mark.parametrize("verb", VERBS)
def test_a_part_of_a_base_is_not_built_on(verb: str, part: ae.Base, adapter: tuple[Adapter, Path], tmp_path: Path):
    with pytest.raises(NoSitesError, match=r"not every .* by `mul`") as caught:
        VERBS[verb](part, replace(adapter[0], training={}), tmp_path)
    assert "--site-map" in caught.value.sentence("shell")
    assert not any(tmp_path.iterdir())


def test_the_sites_that_a_person_names_are_built_on(part: ae.Base, adapter: tuple[Adapter, Path], tmp_path: Path):
    chosen = ae.open_base(part.path, site_map=adapter[1])
    ae.build(chosen, [adapter[0]], tmp_path / "bundle")
    document = part.sites.to_json()["coverage"]
    assert document["expected"] == document["found"] + len(document["unplaced"])


def test_what_does_not_reach_the_final_hidden_state_is_named():
    texts = "h0 = linear x \n y0 = add x h0 \n h1 = linear y0 \n out = add y0 h1"
    found = sites_of(flow(texts), "onnx", GivenSites("map", "", {}, {"onnx": "y0"})).coverage
    assert [each.reason for each in found.unplaced] == [
        "what `layers.1.ffn` computes does not reach `y0`, which heads read"
    ]


def test_a_residual_sum_inside_a_sublayer_is_named():
    layer = "a{n} = linear {x} \n b{n} = linear a{n} \n h{n} = add a{n} b{n} \n {out} = add {x} h{n} \n"
    texts = layer.format(n=0, x="x", out="y") + layer.format(n=1, x="y", out="out")
    reasons = [each.reason for each in discover(flow(texts)).coverage.unplaced]
    assert reasons == [f"`layers.{n}.ffn` holds a residual sum of its own, `h{n}`" for n in (0, 1)]
