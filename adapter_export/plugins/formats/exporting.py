"""Adapters to export: read from a folder or a bundle, with the base whose module paths they need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from adapter_export.address import PathLike
from adapter_export.bases.adapters import check_site_map, load_adapter
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.opening import base_for
from adapter_export.errors import BaseMismatchError, UsageError
from adapter_export.reporting import Reporter
from adapter_export.words import argument, quoted

if TYPE_CHECKING:
    from adapter_export.bases.base_view import BaseView
    from adapter_export.format.manifest import Manifest
    from adapter_export.graph.adapter import Adapter

_MANIFEST = "manifest.json"


def is_bundle(source: Adapter | PathLike) -> bool:
    """Return whether an adapter comes from a bundle."""
    return isinstance(source, str | Path) and (Path(source) / _MANIFEST).is_file()


def adapter_in_bundle(folder: Path, name: str | None) -> tuple[Adapter, BaseView]:
    """Read an adapter of a bundle, and the sites recorded in the bundle.

    Raises:
        UsageError: the bundle has several adapters and none is named, or has no adapter with this name.
        FileError, FormatError: files of the bundle are damaged.
    """
    from adapter_export.format.adapter_files import read_adapter
    from adapter_export.format.manifest_json import read_manifest, verify_files

    manifest = read_manifest(folder)
    records = {record.name: record for record in manifest.adapters}
    if name not in records and (name is not None or len(records) != 1):
        raise UsageError(
            "the bundle has several adapters, and none is named" if name is None else "no adapter has this name",
            where=folder,
            found=quoted(records) if name is None else f"`{name}`",
            expected=None if name is None else quoted(records),
            fix="pass one of them as " + argument("adapter"),
        )
    verify_files(manifest, folder)
    adapter = read_adapter(folder / records[name or next(iter(records))].source)
    return adapter, _view(manifest, adapter)


def _view(manifest: Manifest, adapter: Adapter) -> BaseView:
    """Return the base as recorded in a bundle: names, roles, widths and module paths of sites, without tensors."""
    from adapter_export.bases.base_view import BaseView
    from adapter_export.sites.site import SUBLAYERS, Role, Site, SiteMap

    def width_in(name: str, width: int) -> int:
        placed = adapter.placements.get(name)
        return width if placed is None else placed.widths.get("d_in", width)

    sites = tuple(
        Site(
            name=record.name,
            role=cast(Role, record.role),
            layer=record.layer,
            width=record.width,
            width_in=width_in(record.name, record.width),
            h=record.tensor,
            path=record.path,
        )
        for record in manifest.sites
    )
    width = next((site.width for site in sites if site.role in SUBLAYERS), 1)
    return BaseView(adapter.base, SiteMap(sites, "", width))


def adapter_with_base(
    source: Adapter | PathLike, model: Base | PathLike, options: OpenOptions, reporter: Reporter
) -> tuple[Adapter, Base]:
    """Read an adapter and open its base; `BaseMismatchError` if it was trained on another base."""
    near = model.path if isinstance(model, Base) else Path(model)
    adapter = load_adapter(source, near=near) if isinstance(source, str | Path) else source
    base = base_for(model, options, reporter, recorded=True)
    if adapter.base != base.fingerprint:
        raise BaseMismatchError(adapter.name, found=adapter.base, expected=base.fingerprint, can_be_allowed=False)
    check_site_map([adapter], base.given)
    return adapter, base
