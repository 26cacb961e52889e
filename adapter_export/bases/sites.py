"""Sites of a base: a table, a drawing, and layers without sites."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.sites.site import SiteName
from adapter_export.tables import Described, Table, number_of

if TYPE_CHECKING:
    from adapter_export.bases.base import Base
    from adapter_export.sites.site import Site, SiteMap


@dataclass(frozen=True, repr=False)
class Sites(Described):
    """Places where adapters can act in a base; `print` and notebooks show them.

    Attributes:
        map: the sites in the form used by the rest of the package.
        base: the base.
    """

    map: SiteMap
    base: Base = field(repr=False)
    _not_placed: tuple[str, ...] | None = field(default=None, repr=False)

    def described(self) -> Mapping[str, object]:
        """Return the facts for `repr` and notebooks."""
        return {"base": self.base.path, "sites": sum(1 for _ in self.map), "width": self.map.width}

    @property
    def complete(self) -> SiteMap:
        """Return the map of a base whose sublayers were all placed, or whose sites were given.

        Raises:
            NoSitesError: sublayers were not placed; the message has their layers and the reason.
        """
        from adapter_export.sites.site_map import check_complete

        check_complete(self.map, self.base.given)
        return self.map

    def __iter__(self) -> Iterator[Site]:
        return iter(self.map)

    def __len__(self) -> int:
        return len(tuple(self.map))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sites in adapters."""
        return tuple(site.name for site in self.map)

    @cached_property
    def not_placed(self) -> tuple[str, ...]:
        """Layers with trained weights at which no adapter can act, by torch path or name in the graph.

        Convolutions are such layers. A linear layer of a block among them is a sign that the structure was not
        recognized and that a site map is needed.
        """
        if self._not_placed is not None:
            return self._not_placed
        from adapter_export.sites.view import FlowIndex

        index = FlowIndex(self.base.flow)
        ways = (index.between(site.u, site.h) for site in self.map.of_roles(("linear",)) if site.u is not None)
        placed = {at for way in ways for at in way}
        found = (node for at, node in enumerate(index.nodes) if at not in placed)
        nodes = (node for node in found if node.multiplies and node.weighted)
        return tuple(dict.fromkeys(node.path or node.name for node in nodes))

    def table(self) -> Table:
        """Return the sublayers: name, role, width of the residual stream, torch path, value, operator after the sum."""
        columns = ("site", "role", "width", "torch path", "value", "followed by")
        found = self.map.sublayers
        rows = [(site.name, site.role, site.width, site.path or "", site.h, site.followed_by) for site in found]
        return Table(columns, rows, numbers="llr", spare=("followed by", "value"))

    def inner_table(self) -> Table:
        """Return the linear layers, embeddings and lookups; those that differ only in their layer share a row."""
        rows: dict[tuple[str, str, str, str], list[str]] = {}
        for site in self.map.of_roles(("embeddings", "linear", "lookup")):
            width = f"{site.width_in} → {site.width}" if site.u is not None else f"{site.width}"
            parts = ", ".join(f"{name} {start}–{end}" for name, (start, end) in site.parts.items())
            parts += f" of each {site.width // site.blocks}" if site.blocks > 1 else ""
            path = re.sub(r"\b\d+\b", "*", site.path or "", count=1)
            rows.setdefault((site.place, width, parts, path), []).append(site.name)
        names = (each[0] if len(each) == 1 else f"{each[0]} …  ({len(each)})" for each in rows.values())
        cells = [(*key, name) for key, name in zip(rows, names, strict=True)]
        return Table(("inside", "width", "parts", "torch path", "site"), cells)

    def drawing(self) -> str:
        """Return the layers as a text tree; equal consecutive layers are drawn once."""
        from adapter_export.graph.adapter import BASE_HEAD

        layers = [(name, tuple(members)) for name, members in groupby(self.map.sublayers, key=_layer_name)]
        inner = [site.name for site in self.map.of_roles(("linear", "part"))]
        lines = []
        for _, group in groupby(layers, key=_structure):
            alike = list(group)
            (first, sublayers), (last, _) = alike[0], alike[-1]
            lines.append(
                f"├── {first}" if len(alike) == 1 else f"├── {first} … {last}  ({number_of(len(alike), 'layer')})"
            )
            for number, site in enumerate(sublayers, 1):
                corner, line = ("└", " ") if number == len(sublayers) else ("├", "│")
                lines.append(f"│   {corner}── {site.role}  h + x → {site.followed_by}   ▣ site")
                start = f"{site.name}."
                inside = [f"{name.removeprefix(start)} ▫" for name in inner if name.startswith(start)]
                if inside:
                    lines.append(f"│   {line}   └── {'  '.join(inside)}")
        for title, role in (("lookups", "lookup"), ("outside", "linear")):
            names = [f"{site.name} ▫" for site in self.map.of_roles((role,)) if site.is_outside]
            lines += [f"├── {title}  {'  '.join(names)}"] if names else []
        own = "" if self.base.base_head_facts() is None else f" ({BASE_HEAD})"
        return "\n".join([*lines, f"└── {self.map.final}  ▣ head{own}"])

    def to_json(self) -> dict[str, Any]:
        """Return all sites and facts as JSON data."""
        return {
            "model": None if self.base.path is None else str(self.base.path),
            "form": self.base.form,
            "fingerprint": self.base.fingerprint,
            "width": self.map.width,
            "final": self.map.final,
            "sites": [asdict(site) for site in self.map.sublayers],
            "linear": [asdict(site) for site in self.map.of_roles(("linear",))],
            "parts": [asdict(site) for site in self.map.of_roles(("part",))],
            "lookups": [asdict(site) for site in self.map.of_roles(("lookup",))],
            "embeddings": [asdict(site) for site in self.map.of_roles(("embeddings",))],
            "not_placed": list(self.not_placed),
            "coverage": {**asdict(self.map.coverage), "expected": self.map.coverage.expected},
            "base_head": self.base.base_head_facts(),
        }

    def write_site_map(self, path: Path | str, *, force: bool = False) -> None:
        """Write the sites as a site map for editing; for a torch base, with the names in its ONNX graph, too.

        Raises:
            OutputExistsError, WriteError: the file cannot be written.
        """
        from adapter_export.format.site_map_json import write_site_map

        with temporary_folder() as folder:
            views = self.base.site_maps(folder)
        write_site_map(views, Path(path), force=force)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.inner_table()}\n\n{self.drawing()}"

    def _repr_html_(self) -> str:
        return f"{self.table()._repr_html_()}<pre>{html.escape(self.drawing())}</pre>"


def _layer_name(site: Site) -> str:
    return SiteName.parse(site.name).block or f"layers.{site.layer}"


def _structure(layer: tuple[str, tuple[Site, ...]]) -> tuple[object, ...]:
    name, members = layer
    return name.partition("layers.")[0], *((site.role, site.width, site.followed_by) for site in members)
