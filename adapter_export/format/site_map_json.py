"""Site maps as JSON, schema `site-map`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapter_export.format.canonical import canonical_json, read_json
from adapter_export.format.files import new_file
from adapter_export.format.schema import validate
from adapter_export.sites.site import Site, SiteMap
from adapter_export.sites.site_map import GivenSite, GivenSites, SiteValues, View

SITE_MAP_VERSION = "1.0.0"
"""The version of the format of site maps."""

_SCHEMA = "site-map"
_VIEWS: tuple[View, ...] = ("torch", "onnx")


def read_site_map(path: Path) -> GivenSites:
    """Read a site map; whether it fits a base is seen when it is held against its graph.

    Raises:
        FileError: it cannot be read.
        FormatError: it breaks the format.
    """
    document: Any = read_json(path)
    validate(document, _SCHEMA, path)
    digest = hashlib.sha256(canonical_json(document)).hexdigest()
    sites = {name: None if site is None else _given(site) for name, site in document["sites"].items()}
    return GivenSites(str(path), f"sha256:{digest}", sites, document.get("final", {}))


def write_site_map(views: Mapping[View, SiteMap], path: Path, *, force: bool = False) -> None:
    """Write the sites of a base, with the names of their values in each view, to be edited and read again.

    Args:
        views: the sites as each view has them, of the same names.
        path: the file.
        force: replace what is there.

    Raises:
        OutputExistsError: the path is taken and `force` is not given.
        WriteError: the operating system refused.
    """
    sites: dict[str, dict[str, object]] = {}
    for view, found in views.items():
        for site in found.sites:
            entry = sites.setdefault(site.name, _described(site))
            values = {"h": site.h, "x": site.x, "u": site.u, "y": site.y}
            entry[view] = {key: value for key, value in values.items() if value is not None}
    final = {view: found.final for view, found in views.items()}
    with new_file(path, force=force) as temporary:
        temporary.write_bytes(canonical_json({"format_version": SITE_MAP_VERSION, "sites": sites, "final": final}))


def _described(site: Site) -> dict[str, object]:
    """What a site is in every view; a key that says nothing is left out."""
    said: dict[str, object] = {
        "layer": site.layer,
        "parts": {name: list(bounds) for name, bounds in site.parts.items()} or None,
        "blocks": site.blocks if site.blocks > 1 else None,
    }
    return {"role": site.role, **{key: value for key, value in said.items() if value is not None}}


def _given(site: Mapping[str, Any]) -> GivenSite:
    values = {view: _values(site[view]) for view in _VIEWS if view in site}
    parts = {name: (start, end) for name, (start, end) in site.get("parts", {}).items()}
    return GivenSite(site["role"], site.get("layer"), values, parts, site.get("blocks", 1))


def _values(values: Mapping[str, str]) -> SiteValues:
    return SiteValues(values["h"], values.get("x"), values.get("u", values.get("x")), values.get("y"))
