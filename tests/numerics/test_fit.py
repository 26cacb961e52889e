"""Reasons why an adapter does not fit a base: sites, widths, missing values, norms, flattened tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from replacing import adapter_at, behind_the_norm, scaled, scaled_plus

from adapter_export.errors import AdapterError, GraphError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import AdapterGraph, Node, bind_base_norm
from adapter_export.graph.kinds import BottleneckOptions, houlsby
from adapter_export.numerics.evaluate_adapter import check_fit, check_tokens, evaluate_site
from adapter_export.sites.site import Norm, Role, Site, SiteMap

UNKNOWN = Norm("unknown", 0.0, None, None)
LAYER = Norm("layer", 1e-5, "weight", "bias")


def site(name: str, role: Role = "ffn", width: int = 8, norm: Norm | None = None, width_in: int | None = None) -> Site:
    inner = role in ("linear", "embeddings")
    x, y = (None, None) if inner else ("x", "y")
    u = None if role == "embeddings" else "u"
    return Site(name, role, 0, width, width_in or width, "h", x, u, y, norm, None, None, "output")


def base(*sites: Site) -> SiteMap:
    return SiteMap(sites, "final", 8)


def adapter(graph: AdapterGraph, sites: Sequence[Site]) -> Adapter:
    return adapter_at("a", graph, [one.name for one in sites], base(*sites), "sha256:0")


FFN, QUERY, EMBEDDINGS = (
    site("layers.0.ffn"),
    site("layers.0.attention.query", "linear"),
    site("embeddings", "embeddings"),
)


@pytest.mark.parametrize(
    ("graph", "trained", "found", "fault"),
    [
        (scaled("h"), FFN, QUERY, "acts at `layers.0.ffn`, which the base does not have"),
        (scaled("h"), FFN, site("layers.0.ffn", width=9), "has `d` = 8 at `layers.0.ffn`, the base 9"),
        (scaled("u"), FFN, site("layers.0.ffn", width_in=9), "has `d_in` = 8 at `layers.0.ffn`, the base 9"),
        (scaled_plus("h", "x"), QUERY, QUERY, "reads `x`, which does not exist at `layers.0.attention.query`"),
        (scaled("u"), EMBEDDINGS, EMBEDDINGS, "reads `u`, which does not exist at `embeddings`"),
        (scaled("y"), QUERY, QUERY, "reads `y`, which does not exist"),
        (
            behind_the_norm("h"),
            FFN,
            site("layers.0.ffn", norm=UNKNOWN),
            "the base's norm (`base_norm`), which could not",
        ),
    ],
)
def test_misfits_of_adapter_and_base_are_named(graph: AdapterGraph, trained: Site, found: Site, fault: str) -> None:
    with pytest.raises(AdapterError) as caught:
        check_fit([adapter(graph, [trained])], base(found))
    assert fault in str(caught.value)


def test_graphs_that_replace_a_missing_value_are_refused() -> None:
    nodes = (Node("linear", ("u",), "r", {"weight": "w"}),)
    graph = AdapterGraph(("u",), {"w": ("d_in", "d")}, nodes, "r", "y")
    with pytest.raises(AdapterError, match="replaces `y`, which does not exist"):
        check_fit([adapter(graph, [QUERY])], base(QUERY))


def test_all_that_does_not_fit_is_listed() -> None:
    unfit = adapter(scaled_plus("h", "x"), [QUERY, FFN])
    with pytest.raises(AdapterError, match=r"reads `x`.*; .*`d` = 8"):
        check_fit([unfit], base(QUERY, site("layers.0.ffn", width=9)))
    check_fit([adapter(scaled_plus("h", "x"), [FFN])], base(QUERY, FFN))


def test_tokens_of_all_texts_in_one_row_are_no_text() -> None:
    graph = houlsby(BottleneckOptions(gate=True)).graph
    assert "gate" in {node.op for node in graph.nodes}
    check_tokens(graph, FFN, 3)
    for rank in (2, None):
        with pytest.raises(AdapterError, match="has those of all texts in one row"):
            check_tokens(graph, FFN, rank)
    check_tokens(scaled("h"), FFN, 2)


VALUES = {"h": np.random.default_rng(0).standard_normal((2, 3, 8)), "x": np.ones((2, 3, 8))}


class TestTheNormOfTheBase:
    def test_norm_of_the_base_uses_the_tensors_of_the_base(self) -> None:
        one = adapter(behind_the_norm("h"), [FFN])
        tensors = {"base_norm.weight": np.full(8, 2.0), "base_norm.bias": np.full(8, 0.5)}
        found = evaluate_site(one, FFN.name, {**VALUES, **tensors}, LAYER)
        total = VALUES["h"] + VALUES["x"]
        normal = (total - total.mean(-1, keepdims=True)) / np.sqrt(total.var(-1, keepdims=True) + 1e-5) * 2.0 + 0.5
        down, up = (one.weights[f"{FFN.name}.{name}.weight"] for name in ("down", "up"))
        np.testing.assert_allclose(found, VALUES["h"] + np.maximum(normal @ down, 0) @ up, rtol=0, atol=1e-12)

    def test_base_norm_without_a_weight_has_ones(self) -> None:
        one = adapter(behind_the_norm("h"), [FFN])
        bare = evaluate_site(one, FFN.name, VALUES, Norm("rms", 1e-6, None, None))
        ones = evaluate_site(one, FFN.name, {**VALUES, "base_norm.weight": np.ones(8)}, Norm("rms", 1e-6, "w", None))
        np.testing.assert_array_equal(bare, ones)

    def test_missing_base_norm_is_the_identity(self) -> None:
        assert {node.op for node in bind_base_norm(behind_the_norm("h"), None).nodes} == {"add", "linear", "relu"}

    def test_unknown_base_norms_are_refused(self) -> None:
        with pytest.raises(GraphError, match="could not be read"):
            bind_base_norm(behind_the_norm("h"), UNKNOWN)


def test_widths_required_only_by_an_op_must_fit() -> None:
    roles = {"rule": (2, 2, 2), "left": (2, 4, 1), "right": (2, 1, 3), "bias": (6,)}
    nodes = (
        Node("phm_linear", ("u",), "v", {role: role for role in roles}),
        Node("linear", ("v",), "w", {"weight": "w"}),
        Node("add", ("h", "w"), "r"),
    )
    graph = AdapterGraph(("u", "h"), {**roles, "w": (6, "d")}, nodes, "r")
    check_fit([adapter(graph, [QUERY])], base(QUERY))
    wider = site("layers.0.attention.query", "linear", width_in=10)
    with pytest.raises(AdapterError, match="in = n·p is 10, not 8"):
        check_fit([adapter(graph, [QUERY])], base(wider))
