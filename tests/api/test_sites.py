"""Sites of a base as an object: a table, a drawing, data, and layers without sites."""

from __future__ import annotations

import json

import pytest
from tiny_onnx import save_tiny

import adapter_export as ae
from adapter_export.tables import Table


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ae.Base:
    return ae.open_base(save_tiny(tmp_path_factory.mktemp("tiny")))


def test_the_sites_are_a_table_a_drawing_and_data(base: ae.Base) -> None:
    found = base.sites
    assert found is base.sites
    assert found.names == tuple(site.name for site in found)
    assert len(found) == len(found.names)
    table = found.table()
    assert [row[0] for row in table.rows] == [f"layers.{at}.{role}" for at in range(2) for role in ("attention", "ffn")]
    document = json.loads(json.dumps(found.to_json()))
    assert [site["name"] for site in document["sites"]] == [row[0] for row in table.rows]
    assert document["fingerprint"] == base.fingerprint


def test_layers_of_one_structure_are_drawn_once(base: ae.Base) -> None:
    drawing = base.sites.drawing().splitlines()
    assert drawing[0] == "├── layers.0 … layers.1  (2 layers)"
    assert drawing[-1].startswith("└── ")
    assert sum("▣ site" in line for line in drawing) == 2
    assert "layers.0.attention" in str(base.sites)


def test_notebooks_show_the_table_and_the_drawing(base: ae.Base) -> None:
    html = base.sites._repr_html_()
    assert html.startswith("<table>")
    assert '<td style="text-align:right">16</td>' in html
    assert "▣ head</pre>" in html


def test_layers_without_a_site_are_listed(base: ae.Base) -> None:
    assert base.sites.not_placed == tuple(base.sites.to_json()["not_placed"])
    linear = {site.path for site in base.sites.map.of_roles(("linear",))}
    assert not linear & set(base.sites.not_placed)


def test_an_onnx_graph_cannot_be_trained(base: ae.Base) -> None:
    with pytest.raises(ae.errors.BaseModelError, match="is an ONNX graph, which torch cannot train"):
        _ = base.torch


def test_text_in_a_table_is_escaped_and_aligned() -> None:
    table = Table(("name", "n"), [("<b>", 1), ("a", 100)], "t & u", numbers="lr")
    assert str(table) == "t & u\nname    n\n<b>     1\na     100"
    assert "&lt;b&gt;" in table._repr_html_()
    assert "<caption>t &amp; u</caption>" in table._repr_html_()
