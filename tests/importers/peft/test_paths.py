"""Module paths: one prefix may differ, and nothing is taken for something else."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from peft_folders import linear_site

from adapter_export.errors import AdapterError
from adapter_export.plugins.formats.importers.match import (
    Renaming,
    Target,
    alike,
    find_renaming,
    match,
    sites_by_number,
)
from adapter_export.sites.site import Site, SiteMap

LAYERS = [f"encoder.layer.{layer}.{name}" for layer in range(2) for name in ("query", "output.dense", "value")]


def below(prefix: str) -> list[str]:
    return [f"{prefix}.{path}" for path in LAYERS]


@pytest.mark.parametrize(
    ("adapter", "base", "expected"),
    [
        (LAYERS, LAYERS, Renaming()),
        (LAYERS[:1], LAYERS, Renaming()),
        (below("bert"), LAYERS, Renaming(drop="bert")),
        (below("model.bert"), LAYERS, Renaming(drop="model.bert")),
        (LAYERS, below("model"), Renaming(add="model")),
        (LAYERS, below("0.auto_model"), Renaming(add="0.auto_model")),
        (below("bert"), below("model.bert"), Renaming(add="model")),
        (["h.0.c_attn"], ["transformer.h.0.c_attn", "other.c_attn"], Renaming(add="transformer")),
        (["layers.0.q", "layers.1.q"], ["layers.0.q", "layers.1.q", "x.layers.0.q"], Renaming()),
        ([*below("bert"), "bert.pooler.dense"], LAYERS, Renaming(drop="bert")),
    ],
)
def test_prefixes_of_module_paths_are_matched(adapter: list[str], base: list[str], expected: Renaming) -> None:
    found = find_renaming(adapter, base, "a")
    assert found == expected
    assert found is not None
    for path in adapter:
        if found(path) in base:
            assert found.back(found(path) or "") == path


@pytest.mark.parametrize(
    ("adapter", "base"),
    [
        (["decoder.block.0.q"], ["encoder.block.0.q"]),
        (["encoder.layer.5.query"], ["encoder.layer.0.query"]),
        (["layers.5.query"], ["query"]),
        (["bert.encoder.layer.0.query"], ["model.encoder.layer.0.query"]),
        (["a.query"], []),
    ],
)
def test_different_modules_are_not_matched(adapter: list[str], base: list[str]) -> None:
    assert find_renaming(adapter, base, "a") is None


@pytest.mark.parametrize(
    ("adapter", "base", "words"),
    [
        (["query"], ["layers.0.query", "layers.1.query"], "not `layers.0` and `layers.1`"),
        (["block.0.q"], ["encoder.block.0.q", "decoder.block.0.q"], "not `decoder` and `encoder`"),
        (["encoder.q", "decoder.q"], ["q"], "not `decoder` and `encoder`"),
    ],
)
def test_ambiguous_module_paths_are_refused(adapter: list[str], base: list[str], words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        find_renaming(adapter, base, "a")


def renamed_sites(*paths: str | None) -> SiteMap:
    names = [f"layers.{layer}.{name}" for layer in range(2) for name in ("attention.query", "ffn.up", "ffn.down")]
    return SiteMap(tuple(linear_site(name, path, 32, 32) for name, path in zip(names, paths, strict=True)), "f", 32)


def test_a_module_with_two_sublayers_is_refused() -> None:
    """Language adapters of X-MOD, beside the feed-forward network in `output`, would get the adapter a second time."""
    paths = ("encoder.layer.0.output.dense", "encoder.layer.0.output.adapter_modules.en.dense2")
    sites = [replace(linear_site(f"layers.{at}.ffn", path, 8, 8), role="ffn") for at, path in enumerate(paths)]
    target = Target("bert.encoder.layer.0.output", "bert.encoder.layer.0.output", "ffn")
    with pytest.raises(AdapterError, match=r"contains several sublayers of the base; found .*`encoder\.layer"):
        match([target], SiteMap(tuple(sites), "f", 8), "a")


def by_number(paths: list[str], sites: SiteMap) -> dict[str, Site]:
    return sites_by_number([Target(path, path) for path in paths], sites)


@pytest.mark.parametrize(
    "paths", [(None,) * 6, tuple(f"layers.{layer}.{name}" for layer in range(2) for name in ("q_proj", "fc1", "fc2"))]
)
def test_paths_of_another_architecture_are_matched_by_number(paths: tuple[str | None, ...]) -> None:
    sites = renamed_sites(*paths)
    old = [f"vit.encoder.layer.{layer}.{name}" for layer in range(2) for name in ("intermediate.dense", "output.dense")]
    found = by_number(old, sites)
    assert {path: site.name for path, site in found.items()} == {
        path: f"layers.{layer}.ffn.{name}"
        for path, (layer, name) in zip(old, product((0, 1), ("up", "down")), strict=True)
    }
    assert alike(found.values(), sites) == []
    assert [site.name for site in alike([found[path] for path in old[:3]], sites)] == ["layers.1.ffn.down"]


@pytest.mark.parametrize(
    "path",
    [
        "encoder.layer.2.intermediate.dense",
        "encoder.layer.0.something.dense",
        "encoder.intermediate.dense",
        "encoder.block.0.layer.1.intermediate.dense",
        "decoder.layer.0.intermediate.dense",
        "encoder.layer.0.crossattention.self.query",
        "layers.0.monkey",
    ],
)
def test_unnumbered_or_unknown_paths_match_no_site(path: str) -> None:
    assert by_number([path], renamed_sites(*(None,) * 6)) == {}
    assert by_number(["encoder.layer.0.output.dense", path], renamed_sites(*(None,) * 6)) == {}


def test_only_the_module_without_a_layer_is_the_trouble() -> None:
    paths = [f"encoder.layer.{layer}.output.dense" for layer in range(2)]
    with pytest.raises(AdapterError) as caught:
        match([Target(path, path) for path in [*paths, "pooler.dense"]], renamed_sites(*(None,) * 6), "a")
    assert "found `pooler.dense`;" in str(caught.value)
    assert "the other 2" in str(caught.value)


def test_two_modules_are_never_one_site() -> None:
    assert by_number(["a.0.fc1", "b.0.fc1"], renamed_sites(*(None,) * 6)) == {}


def test_paths_beside_the_prefix_have_no_counterpart() -> None:
    assert Renaming(drop="bert")("classifier") is None
    assert Renaming(drop="bert")("bertha.x") is None
    assert Renaming(add="model")("classifier") == "model.classifier"
    assert Renaming(add="model").back("other.x") is None


def test_parts_of_fused_layers_are_matched_by_usual_names() -> None:
    fused = replace(linear_site("layers.0.attention.qkv", None, 32, 96), parts={"query": (0, 32), "value": (64, 96)})
    found = by_number(["layers.0.self_attn.q_proj"], SiteMap((fused,), "f", 32))
    assert [(site.name, site.role, site.width) for site in found.values()] == [("layers.0.attention.query", "part", 32)]
