"""Site maps compared with a graph: overridden, added and removed sites, and faults."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import pytest
from tiny_onnx import WIDTH, tiny_model

from adapter_export.errors import NoSitesError, UsageError
from adapter_export.onnx_backend.base.flow import flow_graph
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.sites.site_map import GivenSite, GivenSites, SiteValues, sites_of
from adapter_export.sites.view import FlowGraph

ATTENTION = GivenSite("attention", 0, {"onnx": SiteValues("attention0", "embedded", "embedded")})


@pytest.fixture(scope="module")
def flow() -> FlowGraph:
    return flow_graph(ir.from_proto(tiny_model()))


def given(sites: Mapping[str, GivenSite | None], final: str | None = None) -> GivenSites:
    return GivenSites("map.json", "sha256:0", sites, {} if final is None else {"onnx": final})


def site(h: str, x: str, u: str | None = None) -> GivenSite:
    return GivenSite("ffn", 0, {"onnx": SiteValues(h, x, x if u is None else u)})


def test_missing_site_map_gives_the_discovered_sites(flow: FlowGraph) -> None:
    assert sites_of(flow, "onnx") == discover(flow)


def test_unchanged_site_map_gives_the_discovered_sites(flow: FlowGraph) -> None:
    found = discover(flow)
    same = {
        s.name: GivenSite(s.role, s.layer, {"onnx": SiteValues(s.h, s.x, s.u)}) for s in found if s.role != "lookup"
    }
    assert sites_of(flow, "onnx", given(same, found.final)) == found


def test_a_site_overrides_another_completes_a_third_is_left_out(flow: FlowGraph) -> None:
    inner = site("context1", "y0")
    sites = sites_of(
        flow, "onnx", given({"layers.0.ffn": None, "inner": inner, "layers.1.ffn": site("act1", "up1")}, "y0")
    )
    assert [(s.name, s.h, s.width) for s in sites.sublayers] == [
        ("layers.0.attention", "attention0", WIDTH),
        ("inner", "context1", WIDTH),
        ("layers.1.attention", "attention1", WIDTH),
        ("layers.1.ffn", "act1", 2 * WIDTH),
    ]
    assert sites.final == "y0"


def test_bases_without_found_sites_require_the_final_state() -> None:
    flow = flow_graph(ir.from_proto(tiny_model()))
    sums = {node.outputs[0] for node in flow.nodes if node.kind == "add"}
    shapes = {name: shape for name, shape in flow.shapes.items() if name not in sums}
    hidden_sums = FlowGraph(flow.nodes, shapes, flow.outputs)
    with pytest.raises(NoSitesError):
        sites_of(hidden_sums, "onnx", given({"mine": site("down0", "up0")}))
    with pytest.raises(UsageError, match="the shape of `x`"):
        sites_of(hidden_sums, "onnx", given({"mine": site("down0", "up0")}, "hidden"))
    found = sites_of(hidden_sums, "onnx", given({"mine": site("context0", "q0")}, "hidden"))
    (mine,) = (site for site in found if not site.is_outside)
    assert (mine.h, mine.x, mine.width) == ("context0", "q0", WIDTH)


@pytest.mark.parametrize(
    ("sites", "final", "words"),
    [
        ({"a": site("nowhere", "embedded")}, None, r"`a.h`.*`nowhere`, which is not in the graph"),
        ({"a": site("attention0", "input_ids")}, None, r"`a.x`.*`input_ids` of shape"),
        ({"a": site("attention0", "y0")}, None, r"`a.h`.*computed from `x`, `y0`"),
        ({"a": site("embedded", "embedded")}, None, r"`a.h`.*computed from `x`"),
        ({"a": site("up0", "embedded")}, None, r"`a.h`.*the shape of `x`"),
        ({"a": site("ffn0", "normed0", "embedded")}, None, r"`a.u`.*computed from `x`, `normed0`"),
        ({"a": site("attention0", "embedded")}, None, r"`attention0`, also used by `layers.0.attention`"),
        ({"a": site("hidden", "y0")}, None, r"an input or a last result"),
        ({"a": GivenSite("ffn", 0, {"torch": SiteValues("h", "x", "x")})}, None, "no values in this view"),
        ({"layers.7.ffn": None}, None, "no such detected site"),
        ({f"layers.{n}.{role}": None for n in (0, 1) for role in ("attention", "ffn")}, None, "all sites are removed"),
        ({}, "nowhere", r"`final`.*which is not in the graph"),
        ({}, "attention_mask", r"`final`.*of shape"),
    ],
)
def test_site_maps_that_contradict_the_graph_are_refused(
    flow: FlowGraph, sites: Mapping[str, GivenSite | None], final: str | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        sites_of(flow, "onnx", given(sites, final))
    assert "map.json" in str(caught.value)


def test_parts_are_slices_that_have_nothing_in_common(flow: FlowGraph) -> None:
    up = next(s for s in discover(flow) if s.name == "layers.0.ffn.up")
    values, half = {"onnx": SiteValues(up.h, None, up.u)}, up.width // 2

    def fused(parts: Mapping[str, tuple[int, int]], blocks: int = 1) -> SiteMap:
        return sites_of(flow, "onnx", given({up.name: GivenSite("linear", 0, values, parts, blocks)}))

    found = fused({"gate": (0, half), "other": (half, up.width)})
    assert [(s.name, s.role, s.width) for s in found if s.name.startswith("layers.0.ffn.")][:3] == [
        ("layers.0.ffn.up", "linear", up.width),
        ("layers.0.ffn.gate", "part", half),
        ("layers.0.ffn.other", "part", half),
    ]
    for parts in ({"gate": (0, up.width + 1)}, {"gate": (0, half), "other": (half - 1, half)}, {"gate": (2, 2)}):
        with pytest.raises(UsageError, match=rf"slices of 0–{up.width}, none within another"):
            fused(parts)
    with pytest.raises(UsageError, match=rf"`layers.0.ffn.up.blocks`.*found 3.*a number that divides {up.width}"):
        fused({"gate": (0, 1)}, 3)
