"""Adapters before training: a graph at every site of the kind, initialized from the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hand_made_sites import encoder
from small_task import make_adapter, sites_of

from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.heads import make_head
from adapter_export.graph.kinds import KINDS
from adapter_export.sites.site import SiteMap
from adapter_export.training.loop.init_adapter import init_adapter, with_prior


def test_each_kind_acts_at_its_sites(base) -> None:
    ffn = ["layers.0.ffn", "layers.1.ffn"]
    both = ["layers.0.attention", "layers.0.ffn", "layers.1.attention", "layers.1.ffn"]
    found = {kind: list(make_adapter(base, kind).placements) for kind in ("houlsby", "pfeiffer", "parallel")}
    assert found == {"houlsby": both, "pfeiffer": ffn, "parallel": ffn}


def test_the_widths_are_those_of_the_site_and_the_bottleneck(base) -> None:
    adapter = make_adapter(base, "parallel", bottleneck=5, labels=("x", "y", "z"))
    assert adapter.placements["layers.0.ffn"].widths == {"d_in": 16, "b": 5, "d": 16}
    assert adapter.head is not None
    assert adapter.head.widths == {"d": 16, "classes": 3}
    assert adapter.base == base.fingerprint


def test_the_seed_decides_the_weights_and_sites_differ(base) -> None:
    one, same, other = (make_adapter(base, seed=seed).weights for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["layers.0.ffn.down.weight"], other["layers.0.ffn.down.weight"])
    assert not np.array_equal(one["layers.0.ffn.down.weight"], one["layers.1.ffn.down.weight"])


def test_a_head_answers_at_first_as_often_as_is_right(base) -> None:
    labels = ("common", "rare", "never")
    head = make_head("multi_label", width=16, labels=labels)
    adapter = init_adapter(KINDS["houlsby"](None), sites_of(base), name="a", base=base.fingerprint, head=head)
    targets = np.zeros((998, 3), np.float32)
    targets[:499, 0], targets[:9, 1] = 1, 1
    bias = with_prior(adapter, targets).weights["head.classifier.bias"]
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), [0.5, 0.01, 0.001], rtol=1e-5)
    ranked = init_adapter(
        KINDS["houlsby"](None), sites_of(base), name="a", base=base.fingerprint, head=make_head("ranking", width=16)
    )
    assert with_prior(ranked, targets[:, 1]).weights["head.classifier.bias"].shape == (1,)
    plain = make_adapter(base, labels=None)
    assert with_prior(plain, targets) is plain


def test_adapter_without_labels_has_no_head(base) -> None:
    assert make_adapter(base, labels=None).head is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_weights_for_all_its_places(kind: str) -> None:
    """`Adapter` checks names and shapes of tensors."""
    made = KINDS[kind]()
    made = made.with_widths(b=8) if "b" in made.components[0].widths else made
    adapter = init_adapter(made, encoder(), name="a", base="f" * 64)
    assert set(adapter.placements) == {site.name for site, _ in made.at(encoder())}
    assert adapter.graphs == made.graphs
    zero = {name for name, tensor in adapter.weights.items() if not tensor.any()}
    assert {name.rsplit(".", 1)[1] for name in zero} <= {"bias", "weight"}


def test_shared_weights_are_drawn_once() -> None:
    adapter = init_adapter(KINDS["compacter"]().with_widths(b=8), encoder(), name="a", base="f" * 64)
    shared = [name for name in adapter.weights if name.startswith("shared.")]
    assert shared == ["shared.bottleneck_gelu_phm.rule"]
    rules = [adapter.parameters(site)["rule"] for site in adapter.placements]
    assert len(rules) == 4
    assert all(rule is rules[0] for rule in rules)


def test_the_scheme_is_the_kinds_own_unless_another_is_given() -> None:
    made = [
        init_adapter(KINDS["lora"](), encoder(), name="a", base="f" * 64, scheme=scheme)
        for scheme in (None, "kaiming_zero_up", "normal")
    ]
    own, same, other = (adapter.weights["layers.0.attention.query.lora_B.weight"] for adapter in made)
    assert not own.any()
    assert not same.any()
    assert other.any()


def test_invalid_initializations_are_refused(base) -> None:
    with pytest.raises(UsageError, match="unknown initialisation"):
        make_adapter(base, scheme="lucky")
    with pytest.raises(UsageError, match="unknown pooling"):
        make_adapter(base, pooling="median")
    with pytest.raises(AdapterError, match="no site for kind `houlsby`; expected attention or ffn"):
        init_adapter(KINDS["houlsby"](), SiteMap((), "h", 16), name="a", base=base.fingerprint)
