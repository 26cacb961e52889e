"""A site map carried over from a base to what it was remade as."""

from __future__ import annotations

from dataclasses import replace

from adapter_export.errors import NoSitesError
from adapter_export.onnx.base import OnnxBase
from adapter_export.onnx.flow import flow_graph
from adapter_export.sites.discover import discover
from adapter_export.sites.given import GivenSite, GivenSites, SiteValues
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
    before = {site.name: site for site in found.sublayers} if found else {}
    after = {site.name: site for site in remade.sublayers} if remade else {}
    names = {old: new for name in before.keys() & after.keys() for old, new in _pairs(before[name], after[name])}
    if found and remade:
        names[found.final] = remade.final
    wanted = {site.name: site for site in base.sites.sublayers}
    sites: dict[str, GivenSite | None] = {
        name: None for name in [each.name for each in remade or ()] if name not in {site.name for site in base.sites}
    }
    for name, site in wanted.items():
        if name not in after or _values(site) != _values(before.get(name)):
            sites[name] = _renamed(site, names)
    final = names.get(base.sites.final, base.sites.final)
    return replace(base.given, sites=sites, final={"onnx": final})


def _found(base: OnnxBase) -> SiteMap | None:
    try:
        return discover(flow_graph(base.model))
    except NoSitesError:
        return None


def _values(site: Site | None) -> tuple[str | None, ...]:
    return () if site is None else (site.h, site.x, site.u)


def _pairs(before: Site, after: Site) -> list[tuple[str, str]]:
    pairs = zip(_values(before), _values(after), strict=True)
    return [(old, new) for old, new in pairs if old is not None and new is not None]


def _renamed(site: Site, names: dict[str, str]) -> GivenSite:
    assert site.layer is not None  # a sublayer has one
    assert site.x is not None  # and all values
    assert site.u is not None
    values = SiteValues(*(names.get(value, value) for value in (site.h, site.x, site.u)))
    return GivenSite(site.role, site.layer, {"onnx": values})
