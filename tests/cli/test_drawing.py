"""`inspect --svg`: where adapters sit, as a drawing."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from adapter_export.bases.drawing import PlacementMap, SiteRow, draw, placement_map
from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.kinds import KINDS

_SVG = "{http://www.w3.org/2000/svg}"
_KIND = KINDS["houlsby"]()
_D = 8


def _adapter(*sites: str, width: int = 3) -> Adapter:
    (name,) = _KIND.graphs
    placements = {site: Placement(name, {"d": _D, "b": width}) for site in sites}
    shapes = _KIND.graphs[name].parameter_shapes({"d": _D, "b": width})
    weights = {f"{site}.{key}": np.full(shape, 0.2, np.float32) for site in sites for key, shape in shapes.items()}
    return Adapter("x", "houlsby", "sha256:0", _KIND.graphs, placements, weights)


def _texts(svg: str) -> list[str]:
    return [str(found.text) for found in ET.fromstring(svg).iter(f"{_SVG}text")]


def _boxes(svg: str) -> list[tuple[float, float]]:
    """Positions and widths of the boxes of adapters; those of the legend have no text above them."""
    groups = ET.fromstring(svg).iter(f"{_SVG}g")
    return [(float(box.attrib["x"]), float(box.attrib["y"])) for group in groups for box in group.iter(f"{_SVG}rect")]


def test_inspect_draws_the_adapters_of_a_bundle(cli: Any, bundle: Path, tmp_path: Path) -> None:
    svg = tmp_path / "deep" / "a.svg"
    done = cli.done("inspect", bundle, "--svg", svg)
    assert f"wrote {svg}" in done.stderr
    assert "golden vectors" in done.stdout
    text = svg.read_text("utf-8")
    assert _texts(text).count("attention") == _texts(text).count("ffn") == 2
    assert {"bundle", "topic", "tone", "houlsby", "pfeiffer", "layer 0", "layer 1", "head"} <= {*_texts(text)}
    details = [str(title.text) for title in ET.fromstring(text).iter(f"{_SVG}title")][1:]
    assert sum(one.startswith("topic at layers.") for one in details) == 4
    assert sum(one.startswith("tone at layers.") for one in details) == 2
    assert "tone at layers.1.ffn: linear → relu → linear → add; b 4; 148 parameters" in details
    assert len(_boxes(text)) == 4 + 2 + 2, "a box for each place where an adapter acts, its head among them"
    cli.refused(3, "already exists", "inspect", bundle, "--svg", svg)
    cli.done("inspect", bundle, "--svg", svg, "--force")


def test_remains_of_a_killed_command_are_removed_with_a_warning(cli: Any, adapters: Path, tmp_path: Path) -> None:
    left = tmp_path / ".a.svg.0123abcd.tmp"
    left.write_text("half")
    done = cli.done("inspect", adapters / "tone", "--svg", tmp_path / "a.svg")
    assert f"warning: {left}: removed: the process writing it was killed" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]


def test_inspect_draws_an_adapter_and_a_model(cli: Any, adapters: Path, model: Path, tmp_path: Path) -> None:
    cli.done("inspect", adapters / "tone", "--svg", tmp_path / "a.svg")
    assert _texts((tmp_path / "a.svg").read_text("utf-8")).count("4") == 2
    cli.done("inspect", model, "--svg", tmp_path / "m.svg")
    drawn = _texts((tmp_path / "m.svg").read_text("utf-8"))
    assert drawn.count("attention.query") == drawn.count("attention") == 2
    assert "embeddings" in drawn


def test_boxes_lie_in_the_row_of_their_place() -> None:
    sites = ["embeddings", "encoder.layers.0.attention.query", "encoder.layers.0.attention", "encoder.layers.0.ffn"]
    sites += ["decoder.layers.0.cross_attention", "decoder.layers.1.ffn.up"]
    adapters = [("a", _adapter(sites[1], sites[2])), ("b", _adapter(sites[2]))]
    found = placement_map("two streams", sites, adapters, [sites[3], sites[4]])
    assert found.rows == (
        SiteRow("encoder.layers.0.attention.query", "encoder.layers.0", "attention.query", False),
        SiteRow("encoder.layers.0.attention", "encoder.layers.0", "attention", True),
        SiteRow("encoder.layers.0.ffn", "encoder.layers.0", "ffn", True),
        SiteRow("decoder.layers.0.cross_attention", "decoder.layers.0", "cross_attention", True),
    )
    svg = draw(found)
    assert {"encoder layer 0", "decoder layer 0"} <= {*_texts(svg)}
    (x0, y0), (x1, y1), (x2, y2) = _boxes(svg)
    assert x0 == x1 < x2
    assert y0 < y1 == y2


def test_layers_that_look_alike_are_drawn_once() -> None:
    sites = [f"layers.{layer}.{role}" for layer in range(12) for role in ("attention", "ffn")]
    wide, upper = _adapter(*sites), _adapter(*sites[12::2])
    svg = draw(placement_map("folded", sites, [("wide", wide), ("upper", upper)], sites))
    assert {"layers 0–5", "layers 6–11"} <= {*_texts(svg)}
    assert len(_boxes(svg)) == 2 + 3
    details = [str(title.text) for title in ET.fromstring(svg).iter(f"{_SVG}title")]
    assert sum(one.endswith("; the same in 6 layers") for one in details) == 5
    assert "acts at 24 places" in str(ET.fromstring(svg).findtext(f"{_SVG}desc")), "the words count each layer"
    odd = _adapter("layers.3.ffn", width=5)
    single = draw(placement_map("odd", sites, [("odd", odd)], sites))
    assert {"layers 0–2", "layer 3", "layers 4–11"} <= {*_texts(single)}


@pytest.mark.parametrize(("count", "turned"), [(0, 0), (6, 0), (7, 7), (20, 20)])
def test_many_names_are_turned_and_all_lies_inside(count: int, turned: int) -> None:
    sites = [f"layers.{layer}.{role}" for layer in range(24) for role in ("attention", "ffn")]
    adapters = [(f"adapter-{index:02}", _adapter(*sites[::2], width=100 + index)) for index in range(count)]
    root = ET.fromstring(draw(placement_map("many", sites, adapters, sites)))
    width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
    texts = list(root.iter(f"{_SVG}text"))
    assert sum("transform" in text.attrib for text in texts) == turned
    for one in [*root.iter(f"{_SVG}rect"), *texts]:
        assert 0 <= float(one.attrib["x"]) <= width - float(one.attrib.get("width", 0))
        assert 0 <= float(one.attrib["y"]) <= height - float(one.attrib.get("height", 0))
    columns = sorted({x for x, _ in _boxes(ET.tostring(root, encoding="unicode"))})
    assert len(columns) == count
    assert all(later - before >= 30 for before, later in pairwise(columns)), "no box covers another"


def test_drawing_escapes_names() -> None:
    svg = draw(placement_map("<script>&\"'", ["<b>"], [("</svg>", _adapter("<b>"))], []))
    assert {"<script>&\"'", "</svg>", "<b>"} <= {*_texts(svg)}
    assert "<script" not in svg


def test_drawing_has_both_colour_schemes_and_a_description() -> None:
    svg = draw(placement_map("t", ["ffn"], [("a", _adapter("ffn"))], []))
    style = ET.fromstring(svg).findtext(f"{_SVG}style") or ""
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    used = {one.attrib["class"] for one in ET.fromstring(svg).iter() if "class" in one.attrib}
    for name in used:
        assert re.search(rf"\.{name}\b", light), name
        assert re.search(rf"\.{name}\b", dark), name
    assert ET.fromstring(svg).findtext(f"{_SVG}desc") == "a (houlsby) acts at 1 place"


def test_empty_placements_draw_only_the_title() -> None:
    assert _texts(draw(PlacementMap("empty", (), ()))) == ["empty"]
