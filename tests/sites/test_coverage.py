"""No base gives a part of its sublayers without a word: all are found, or those that are not are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from exported_bases import ExportedBase
from flows import flow
from tiers import some_quick

import adapter_export as ae
from adapter_export.errors import NoSitesError
from adapter_export.graph.adapter import Adapter
from adapter_export.sites.discover import discover
from adapter_export.sites.site_map import GivenSites, sites_of

COMPLETE = {
    "of_several_forms": 8,
    "hiera": 6,
    "detr": 5,
    "perceiver": 6,
}
"""Bases with sums, starts or stages of other forms, and the number of sublayers that a person counts in each."""

CHANNELS_FIRST = ["squeezebert", "channels_first"]


@pytest.fixture(params=["torch", "onnx"])
def sites(request, exported):
    return lambda name: exported(name).torch_sites if request.param == "torch" else exported(name).in_onnx.sites


def test_unplaced_sublayers_are_named_with_the_reason(sites):
    found = sites("multiplied").coverage
    first, *_ = found.unplaced
    assert "model.0.down" in first.layers
    assert "by `mul`, which is not a supported sum" in first.reason.lower()
    assert str(found) == f"{found.found} of at least {found.found + len(found.unplaced)} sublayers"


@pytest.mark.parametrize("name", some_quick(COMPLETE, "of_several_forms"))
def test_all_sublayers_are_found(sites, name):
    assert str(sites(name).coverage) == f"{COMPLETE[name]} of {COMPLETE[name]} sublayers"


@pytest.mark.parametrize("name", some_quick(CHANNELS_FIRST, "channels_first"))
def test_a_width_that_is_the_number_of_tokens_is_refused(sites, name):
    with pytest.raises(NoSitesError, match=r"not on the last axis .* 16, 7\]"):
        sites(name)


def test_residual_sums_of_every_form_are_found(sites):
    found = [site.name for site in sites("of_several_forms").sublayers]
    assert found == [f"layers.{layer}.{role}" for layer in range(4) for role in ("attention", "ffn")]


def test_the_last_sum_counts_where_the_older_exporter_renames_its_axes(exported, tmp_path: Path):
    found = exported("beit").of_older_exporter(tmp_path).sites
    assert [site.name for site in found.sublayers] == [
        f"layers.{layer}.{role}" for layer in range(2) for role in ("attention", "ffn")
    ]
    assert (str(found.coverage), found.final) == ("4 of 4 sublayers", "out")


@pytest.fixture(scope="module")
def part(exported: Callable[[str], ExportedBase]) -> ae.Base:
    """A base of which not every sublayer is placed."""
    return ae.open_base(exported("multiplied").archive)


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
    with pytest.raises(NoSitesError, match=r"some sublayers .* by `mul`") as caught:
        VERBS[verb](part, replace(adapter[0], training={}), tmp_path)
    assert "--site-map" in caught.value.sentence("shell")
    assert not any(tmp_path.iterdir())


def test_the_sites_that_a_person_names_are_built_on(part: ae.Base, adapter: tuple[Adapter, Path], tmp_path: Path):
    chosen = ae.open_base(part.path, site_map=adapter[1])
    ae.build(chosen, [adapter[0]], tmp_path / "bundle")
    document = part.sites.to_json()["coverage"]
    assert document["expected"] == document["found"] + len(document["unplaced"])


def test_sublayers_that_do_not_reach_the_end_are_named():
    texts = "h0 = linear x \n y0 = add x h0 \n h1 = linear y0 \n out = add y0 h1"
    found = sites_of(flow(texts), "onnx", GivenSites("map", "", {}, {"onnx": "y0"})).coverage
    assert [each.reason for each in found.unplaced] == [
        "the result of `layers.1.ffn` does not reach `y0`, the input of heads"
    ]


def test_a_residual_sum_inside_a_sublayer_is_named():
    layer = "a{n} = linear {x} \n b{n} = linear a{n} \n h{n} = add a{n} b{n} \n {out} = add {x} h{n} \n"
    texts = layer.format(n=0, x="x", out="y") + layer.format(n=1, x="y", out="out")
    reasons = [each.reason for each in discover(flow(texts)).coverage.unplaced]
    assert reasons == [f"`layers.{n}.ffn` contains an inner residual sum, `h{n}`" for n in (0, 1)]
