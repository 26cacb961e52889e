"""An adapter of one model is not taken for another one: names, architecture, width and layers must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from adapterhub_bases import FIXTURES, Made, import_adapterhub
from tiers import some_quick

from adapter_export.errors import AdapterError, TensorError
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_folder import sublayer_target
from adapter_export.sites.site import SiteMap

KINDS = ("seq_bn", "double_seq_bn", "lora")


@pytest.mark.parametrize("form", ["torch", "onnx"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", some_quick(["distilbert", "vit", "llama"], "distilbert"))
def test_an_adapter_of_bert_is_none_of_another_model(
    name: str, kind: str, form: str, made: Callable[[str], Made]
) -> None:
    sites = made(name).sites if form == "torch" else made(name).onnx.sites
    with pytest.raises(AdapterError, match=r"that the base does not have; found `bert\.encoder.*by_number=True"):
        import_adapterhub(FIXTURES / "bert" / kind, sites, name="a", base="x")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", some_quick(["distilbert", "vit"], "distilbert"))
def test_by_number_matches_layers_of_another_architecture(
    name: str, kind: str, made: Callable[[str], Made], bert: Made
) -> None:
    folder = FIXTURES / "bert" / kind
    found = import_adapterhub(folder, made(name).sites, name="a", base="x", by_number=True)
    assert any("matched by number" in note for note in found.notes)
    own = import_adapterhub(folder, bert.sites, name="a", base="x").adapter
    assert list(found.adapter.placements) == list(own.placements)
    assert all(np.array_equal(found.adapter.weights[key], tensor) for key, tensor in own.weights.items())


def test_by_number_changes_nothing_where_the_paths_agree(bert: Made) -> None:
    found = import_adapterhub(FIXTURES / "bert/seq_bn", bert.sites, name="a", base="x", by_number=True)
    assert not found.notes


@pytest.mark.parametrize("kind", [*KINDS, "setup_stack"])
def test_adapters_of_another_architecture_are_refused_unless_by_number(kind: str, made: Callable[[str], Made]) -> None:
    """RoBERTa's modules are called like BERT's."""
    folder, sites = FIXTURES / "bert" / kind, made("roberta").sites
    with pytest.raises(AdapterError, match=r"another architecture; found `bert`; expected `roberta`.*by_number=True"):
        import_adapterhub(folder, sites, name="a", base="x", model_type="roberta")
    assert import_adapterhub(folder, sites, name="a", base="x", model_type="roberta", by_number=True)
    assert import_adapterhub(folder, sites, name="a", base="x", model_type="bert")


@pytest.mark.parametrize("kind", KINDS)
def test_bases_of_another_depth_are_refused(kind: str, bert: Made) -> None:
    def renumbered(number: int) -> list[object]:
        found = [site for site in bert.sites.sites if site.layer == 1]
        return [
            replace(
                site,
                layer=number,
                name=site.name.replace("layers.1", f"layers.{number}"),
                path=site.path and site.path.replace("layer.1", f"layer.{number}"),
            )
            for site in found
        ]

    longer = SiteMap((*bert.sites.sites, *renumbered(2)), bert.sites.final, bert.sites.width)
    with pytest.raises(TensorError, match=r"every tensor of .*(layers\.2|in layer 2)"):
        import_adapterhub(FIXTURES / "bert" / kind, longer, name="a", base="x")
    shorter = replace(bert.sites, sites=tuple(site for site in bert.sites.sites if site.layer != 1))
    with pytest.raises(AdapterError, match=r"modules that the base does not have; found `bert\.encoder\.layer\.1"):
        import_adapterhub(FIXTURES / "bert" / kind, shorter, name="a", base="x")


def test_modules_around_all_layers_are_no_place(bert: Made) -> None:
    """A path that has no number would be behind every sublayer."""
    sites = [replace(site, path=site.path and f"output.{site.path}") for site in bert.sites.sites]
    around = replace(bert.sites, sites=tuple(sites))
    with pytest.raises(AdapterError, match="modules that the base does not have"):
        import_adapterhub(FIXTURES / "distilbert/seq_bn", around, name="a", base="x")


def test_numbered_modules_are_identified_by_their_sublayer(bert: Made) -> None:
    """T5 names its modules by numbers: `decoder.block.0.layer.1` is cross-attention, in an encoder the FFN."""
    inside = {"attention": "layer.0.SelfAttention.o", "ffn": "layer.1.DenseReluDense.wo"}
    sites = [
        replace(site, path=f"encoder.block.{site.layer}.{inside[site.role]}") if site.role in inside else site
        for site in bert.sites.sites
    ]
    t5 = SiteMap(tuple(sites), bert.sites.final, bert.sites.width)
    for path, role in (("transformer.encoder.block.1.layer.0", "attention"), ("encoder.block.0.layer.1", "ffn")):
        assert sublayer_target(path, t5).role == role
    for path in ("encoder.block.0", "encoder.block.0.layer.2", "encoder"):  # two sublayers, none, all of them
        with pytest.raises(AdapterError, match=rf"unknown module; found `{path}`.*with one sublayer"):
            sublayer_target(path, t5)
