"""Site maps in rewritten bases: the given sites are the same places after quantization and fusion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from building import in_precision
from tiny_onnx import save_tiny, token_inputs

from adapter_export.errors import BaseModelError
from adapter_export.format.precision import PrecisionName
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.quantise.optimize import optimize_base
from adapter_export.onnx_backend.rewrite.surgery import GraphRewrite
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.site_map import GivenSite, GivenSites, SiteValues

PRECISIONS: tuple[PrecisionName, ...] = ("fp16", "int8", "int8-weights", "int4-weights")


def _given(h: str = "down1") -> GivenSites:
    """Return another name for a detected site, a place that is not detected, and a site that is removed."""
    return GivenSites(
        source="map.json",
        digest="sha256:" + "0" * 64,
        sites={
            "layers.0.attention": None,
            "mine": GivenSite("attention", 0, {"onnx": SiteValues(h="attention0", x="embedded", u="embedded")}),
            "layers.1.ffn": GivenSite("ffn", 1, {"onnx": SiteValues(h=h, x="normed1", u="normed1")}),
        },
        final={},
    )


@pytest.fixture
def base(tmp_path: Path) -> OnnxBase:
    return open_onnx(save_tiny(tmp_path), given_sites=_given())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_given_sites_are_the_same_places_in_another_precision(
    base: OnnxBase, tmp_path: Path, precision: PrecisionName
) -> None:
    (tmp_path / "made").mkdir()
    made = in_precision(base, precision, tmp_path / "made")
    _check_same_places(base, made, 0.9)


def test_given_sites_are_the_same_places_in_a_fused_graph(base: OnnxBase, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    made, _ = optimize_base(base, tmp_path / "made")
    _check_same_places(base, made, 1 - 1e-5)


def test_a_value_that_is_gone_is_named(tmp_path: Path) -> None:
    base = open_onnx(save_tiny(tmp_path), given_sites=_given())
    (tmp_path / "made").mkdir()
    for node in list(base.model.graph):
        for value in node.outputs:
            if value.name == "down1":
                value.name = "kept by nobody"
    with pytest.raises(BaseModelError, match=r"has lost a value of the site map when it is in fp16"):
        in_precision(base, "fp16", tmp_path / "made")


def _check_same_places(base: OnnxBase, made: OnnxBase, least: float) -> None:
    names = [site.name for site in base.sites.sublayers]
    assert (
        names
        == [site.name for site in made.sites.sublayers]
        == ["mine", "layers.0.ffn", "layers.1.attention", "layers.1.ffn"]
    )
    inputs = token_inputs(7, 4)
    before, after = _values(base, inputs), _values(made, inputs)
    for name, value in before.items():
        found = np.corrcoef(value.ravel(), after[name].astype(np.float32).ravel())[0, 1]
        others = [np.corrcoef(value.ravel(), after[other].ravel())[0, 1] for other in before if other != name]
        assert found > least, name
        assert found > max(others), name


def _values(base: OnnxBase, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rewrite = GraphRewrite(base.model)
    for site in base.sites.sublayers:
        rewrite.expose(rewrite.value(site.h), f"shown/{site.name}")
    session = open_session(rewrite.finish(), base.folder, optimize=False)
    return {
        name.removeprefix("shown/"): value for name, value in run_session(session, inputs).items() if "shown" in name
    }
