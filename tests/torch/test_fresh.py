"""Adapters before training: a graph at every site of the kind, drawn from the seed."""

from __future__ import annotations

import numpy as np
import pytest
from small_encoder import load_encoder
from small_task import make_adapter

from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.kinds import KINDS
from adapter_export.sites.site import SiteMap
from adapter_export.torch.base import TorchBase
from adapter_export.torch.fresh import fresh_adapter


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TorchBase:
    return load_encoder(tmp_path_factory.mktemp("base") / "model.pt")


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


def test_without_labels_there_is_no_head(base) -> None:
    assert make_adapter(base, labels=None).head is None


def test_what_cannot_be_made_is_refused(base) -> None:
    with pytest.raises(UsageError, match="unknown initialisation"):
        make_adapter(base, scheme="lucky")
    with pytest.raises(UsageError, match="unknown pooling"):
        make_adapter(base, pooling="last")
    with pytest.raises(AdapterError, match="no site for kind `houlsby`; expected attention or ffn"):
        fresh_adapter(KINDS["houlsby"](None), SiteMap((), "h", 16), name="a", base=base.fingerprint)
