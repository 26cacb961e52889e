"""Plain tensors of every kind: options are inferred where possible, and required otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hand_made_sites import encoder, site
from random_kinds import random_tensors

from adapter_export.bases.base_view import BaseView
from adapter_export.errors import AdapterError, TensorError, UsageError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import KINDS, BottleneckOptions, Kind, LoraOptions
from adapter_export.plugins.formats.importers.plain_tensors import fitting_kind, pack
from adapter_export.sites.site import SiteMap

SITES = encoder()
HIDDEN: dict[str, dict[str, Any]] = {"lora": {"alpha": 8}, "ia3": {}}
"""Options that the tensors of a kind do not show, besides the activation."""

NAMES = (("query", "value"), ("attention.query", "attention.value"))
"""The layers of LoRA by the ends of their names, and whole."""


def tensors_of(kind: Kind) -> dict[str, np.ndarray]:
    return random_tensors(kind, SITES)


def packed(tensors: dict[str, np.ndarray], kind: Kind) -> Adapter:
    return pack(tensors, kind, BaseView("f" * 64, SITES), name="a").adapter


def small(kind: Kind) -> Kind:
    return kind.with_widths(b=8) if "b" in kind.components[0].widths else kind


def given(name: str) -> dict[str, Any]:
    return HIDDEN.get(name, {"activation": getattr(KINDS[name].defaults, "activation", None)})


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_packed_from_its_tensors(name: str) -> None:
    kind = small(KINDS[name]())
    tensors = tensors_of(kind)
    adapter = packed(tensors, fitting_kind(tensors, name, **given(name)))
    assert adapter.graphs == kind.graphs
    assert adapter.placements == kind.placements(SITES)
    assert adapter.weights.keys() == tensors.keys()


@pytest.mark.parametrize(
    "options",
    [
        BottleneckOptions("relu", no_bias=True),
        BottleneckOptions("relu", norm_before=True),
        BottleneckOptions("relu", "channel", norm_after=True),
        BottleneckOptions("relu", "learned", gate=True),
        BottleneckOptions("relu", phm_dim=2, phm_rank=3),
        BottleneckOptions("relu", phm_dim=4, phm_shared_rule=False),
        BottleneckOptions("relu", phm_dim=2, phm_shared_weights=True),
    ],
)
def test_the_options_of_bottlenecks_are_seen(options: BottleneckOptions) -> None:
    kind = KINDS["houlsby"](options).with_widths(b=8)
    tensors = tensors_of(kind)
    adapter = packed(tensors, fitting_kind(tensors, "houlsby", activation="relu"))
    assert adapter.graphs == kind.graphs
    assert adapter.placements == kind.placements(SITES)


def test_the_layers_and_ranks_of_lora_are_seen() -> None:
    options = LoraOptions(
        ("attention.query", "ffn.down"), rank={"attention.query": 2, "ffn.down": 4}, alpha=8, lora_bias=True
    )
    tensors = tensors_of(KINDS["lora"](options))
    adapter = packed(tensors, fitting_kind(tensors, "lora", alpha=8))
    factors = {
        site: [node.attributes["factor"] for node in adapter.graphs[placement.graph].nodes if node.op == "scale"]
        for site, placement in adapter.placements.items()
    }
    assert factors["layers.1.attention.query"] == [4.0]
    assert factors["layers.1.ffn.down"] == [2.0]
    assert adapter.placements["layers.0.ffn.down"].widths == {"d_in": 32, "r": 4, "d": 16}
    by_name = fitting_kind(tensors, "lora", alpha={"attention.query": 8, "ffn.down": 8})
    assert packed(tensors, by_name).graphs == adapter.graphs


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("houlsby", {}, "nothing in the tensors shows the activation of `houlsby`. Give `activation`"),
        ("nice", {}, "nothing in the tensors shows the activation of `nice`"),
        ("lora", {}, "nothing in the tensors shows the alpha of `lora`. Give `alpha`"),
        ("lora", {"alpha": {"attention.query": 1}}, "nothing in the tensors shows the alpha"),
        ("ia3", {"activation": "relu"}, "`ia3` has no such option; found `activation`"),
        ("dora", {}, "`dora` cannot be expressed yet"),
    ],
)
def test_undetectable_options_must_be_given(name: str, options: dict[str, Any], message: str) -> None:
    tensors = tensors_of(small(KINDS[name]())) if name in KINDS else {}
    with pytest.raises(UsageError, match=message):
        fitting_kind(tensors, name, **options)


def test_layers_may_be_called_by_the_ends_of_their_names() -> None:
    tensors = tensors_of(KINDS["lora"](LoraOptions(rank=3)))
    short, long = (fitting_kind(tensors, "lora", alpha=6, modules=names) for names in NAMES)
    assert packed(tensors, short).placements == packed(tensors, long).placements
    assert [graph.nodes for graph in short.graphs.values()] == [graph.nodes for graph in long.graphs.values()]


@pytest.mark.parametrize("named", [{}, {"modules": ("query", "pooler.dense")}])
def test_the_rank_of_a_layer_outside_of_all_sublayers_is_seen(named: dict[str, Any]) -> None:
    sites = SiteMap((*SITES, site("pooler.dense", "linear", None, 16)), "final", 16)
    options = LoraOptions(("attention.query", "pooler.dense"), rank={"attention.query": 2, "pooler.dense": 4}, alpha=8)
    kind = fitting_kind(random_tensors(KINDS["lora"](options), sites), "lora", alpha=8, **named)
    found = {site.name: part for site, part in kind.placed(sites)}["pooler.dense"]
    assert [node.attributes["factor"] for node in found.graph.nodes if node.op == "scale"] == [2.0]


def test_other_tensors_than_lora_are_refused() -> None:
    with pytest.raises(AdapterError, match="the tensors contain no LoRA"):
        fitting_kind(tensors_of(small(KINDS["pfeiffer"]())), "lora", alpha=1)


def test_one_alpha_needs_one_rank_in_all_layers() -> None:
    tensors = tensors_of(KINDS["lora"]())
    tensors["layers.1.attention.query.lora_A.weight"] = np.ones((16, 2), np.float32)
    with pytest.raises(AdapterError, match=r"LoRA's rank differs by layer.*`attention.query` \[2, 8\]"):
        fitting_kind(tensors, "lora", alpha=1)


def test_a_missing_rule_is_named_once() -> None:
    kind = KINDS["compacter"]().with_widths(b=8)
    tensors = tensors_of(kind)
    rule = tensors.pop("shared.bottleneck_gelu_phm.rule")
    with pytest.raises(
        TensorError, match=r"1 of the tensors does not fit; found `shared\.bottleneck_gelu_phm.rule` is missing"
    ):
        packed(tensors, kind)
    tensors["shared.bottleneck_gelu_phm.rule"] = rule[:2]
    with pytest.raises(TensorError, match=r"`shared.bottleneck_gelu_phm.rule` has shape \[2, 4, 4\], not \[4, 4, 4\]"):
        packed(tensors, kind)


def test_left_out_layers_have_no_tensors() -> None:
    kind = KINDS["pfeiffer"].changed(bottleneck=8, leave_out=(0,))
    tensors = tensors_of(kind)
    fitted = fitting_kind(tensors, "pfeiffer", activation="relu")
    with pytest.raises(TensorError, match=r"every tensor of `layers\.0\.ffn` is missing"):
        packed(tensors, fitted)
    left_out = fitting_kind(tensors, "pfeiffer", activation="relu", leave_out=(0,))
    assert list(packed(tensors, left_out).placements) == ["layers.1.ffn"]
