"""A base is rejected if its sites in torch and in its exported graph differ: names, numbers and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from once import once

import adapter_export as ae
from adapter_export.bundle.views import check_same_sites
from adapter_export.errors import BaseModelError
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.torch_runner import node_values

Pair = tuple[ae.Base, OnnxBase]


@pytest.fixture(scope="module")
def pair(tiny_bert_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base, and its exported graph."""
    base = ae.open_base(tiny_bert_archive)
    folder = once(tmp_path_factory, "tiny_bert_graph", base.exported)
    return base, open_onnx(folder / "exported" / "base.onnx")


def _check(pair: Pair, in_torch: SiteMap, in_onnx: SiteMap) -> None:
    base, exported = pair
    check_same_sites(in_torch, replace(exported, sites=in_onnx), partial(node_values, base.torch), base.max_tokens)


def _changed(at: int, **values: Any) -> Callable[[SiteMap], SiteMap]:
    def change(sites: SiteMap) -> SiteMap:
        found = list(sites.sites)
        place = [number for number, site in enumerate(found) if not site.is_outside][at]
        found[place] = replace(found[place], **values)
        return replace(sites, sites=tuple(found))

    return change


def _without_last(sites: SiteMap) -> SiteMap:
    return replace(sites, sites=tuple(site for site in sites.sites if site != sites.sublayers[-1]))


def _swapped(sites: SiteMap) -> SiteMap:
    first, second, *others = (site for site in sites.sites if not site.is_outside)
    outside = (site for site in sites.sites if site.is_outside)
    return replace(sites, sites=(*outside, second, first, *others))


def _value_of_another(name: str) -> Callable[[SiteMap], SiteMap]:
    """Replace a value of the first sublayer by the same value of the next, with the same width."""

    def change(sites: SiteMap) -> SiteMap:
        inside = [site for site in sites.sites if not site.is_outside]
        one, other = [at for at, site in enumerate(inside) if site.x is not None][:2]
        return _changed(one, **{name: getattr(inside[other], name)})(sites)

    return change


def _other_result(sites: SiteMap) -> SiteMap:
    return replace(sites, final=next(site.y for site in sites.sites if site.y is not None))


FAULTS: dict[str, tuple[Callable[[SiteMap], SiteMap], str]] = {
    "renamed": (_changed(1, name="layers.7.ffn"), "`layers.7.ffn`"),
    "another role": (_changed(1, role="embeddings"), "embeddings"),
    "another width": (_changed(1, width=3), "→ 3 of"),
    "a value missing": (_changed(1, u=None), "found"),
    "missing": (_without_last, "`layers.1.ffn`"),
    "in another order": (_swapped, "found"),
    **{f"another {name}": (_value_of_another(name), f"`, `{name}`") for name in "hxuy"},
    "another result": (_other_result, "site `head`, `hidden`"),
}


def test_equal_sites_of_both_views_are_accepted(pair: Pair) -> None:
    base, exported = pair
    assert len(base.sites.map.sites) > 4
    _check(pair, base.sites.map, exported.sites)


@pytest.mark.parametrize("where", ["torch", "ONNX"])
@pytest.mark.parametrize("fault", FAULTS)
def test_different_sites_of_both_views_are_refused(pair: Pair, fault: str, where: str) -> None:
    base, exported = pair
    change, words = FAULTS[fault]
    ours, theirs = base.sites.map, exported.sites
    with pytest.raises(BaseModelError, match="the sites of the torch model differ from those") as refused:
        _check(pair, change(ours) if where == "torch" else ours, change(theirs) if where == "ONNX" else theirs)
    assert words in str(refused.value)
