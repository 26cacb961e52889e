"""A site map carried over from a base to what it was remade as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from adapter_export.errors import NoSitesError
from adapter_export.onnx.base import OnnxBase
from adapter_export.onnx.flow import flow_graph
from adapter_export.sites.discover import discover
from adapter_export.sites.given import GivenSite, GivenSites
from adapter_export.sites.site import Site, SiteMap


def carried(base: OnnxBase, remade: SiteMap | None) -> GivenSites | None:
    """The site map of a base as it reads in the graph that the base was remade as; none where it has none.

    Quantisers and fusions keep the names of values that they do not fuse away. Where a site is found in both graphs,
    its values may have other names, and what is found says which. So a given site that is made of values of a found
    one follows it, and other values keep their names; what is not there is refused when the sites are looked up.

    Args:
        base: the base, with the sites that somebody gave.
        remade: the sites that were found in the remade graph; none if there are none.
    """
    if base.given is None:
        return None
    found = _found(base)
    before = {site.name: site for site in found or ()}
    after = {site.name: site for site in remade or ()}
    names = {old: new for name in before.keys() & after.keys() for old, new in _pairs(before[name], after[name])}
    if found and remade:
        names[found.final] = remade.final
    sites = {
        name: None if site is None else _renamed(site, names)
        for name, site in base.given.sites.items()
        if site is not None or name in after
    }
    final = names.get(base.sites.final, base.sites.final)
    return replace(base.given, sites=sites, final={"onnx": final})


def _found(base: OnnxBase) -> SiteMap | None:
    try:
        return discover(flow_graph(base.model))
    except NoSitesError:
        return None


def _pairs(before: Site, after: Site) -> list[tuple[str, str]]:
    pairs = [(getattr(before, key), getattr(after, key)) for key in ("h", "x", "u", "y")]
    return [(old, new) for old, new in pairs if old is not None and new is not None]


def _renamed(site: GivenSite, names: Mapping[str, str]) -> GivenSite:
    given = site.values["onnx"]  # the base was opened with it
    keys = [each.name for each in fields(given) if getattr(given, each.name) is not None]
    values = {key: names.get(getattr(given, key), getattr(given, key)) for key in keys}
    return replace(site, values={"onnx": replace(given, **values)})
