"""The sites of a base: a table, a drawing, and what has none."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from adapter_export.tables import Table

if TYPE_CHECKING:
    from adapter_export.api.base import Base
    from adapter_export.sites.site import Site, SiteMap
    from adapter_export.sites.site_map import View
    from adapter_export.sites.view import FlowGraph

_LAYER = re.compile(r"\blayers\.\d+\.")


@dataclass(frozen=True)
class Branch:
    """Layers of one structure in a drawing.

    Attributes:
        first: the name of the first one.
        last: the name of the last one.
        layers: how many there are.
        sublayers: those of each: its role, what reads its sum, and the names of the layers inside it.
    """

    first: str
    last: str
    layers: int
    sublayers: tuple[tuple[str, str, tuple[str, ...]], ...]

    @property
    def name(self) -> str:
        """`layers.0`, or `layers.0 … layers.5  (6 alike)`."""
        return self.first if self.layers == 1 else f"{self.first} … {self.last}  ({self.layers} alike)"


@dataclass(frozen=True)
class Sites:
    """Where adapters can act in a base; `print` and notebooks show it.

    Attributes:
        map: the sites as the rest of the package reads them.
        flow: the graph that they were found in.
        base: the base.
    """

    map: SiteMap
    flow: FlowGraph = field(repr=False)
    base: Base = field(repr=False)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.map)

    def __len__(self) -> int:
        return len(tuple(self.map))

    @property
    def names(self) -> tuple[str, ...]:
        """By which adapters know them."""
        return tuple(site.name for site in self.map)

    @cached_property
    def not_placed(self) -> tuple[str, ...]:
        """The layers with trained weights at which no adapter can act, by their torch paths, or names in the graph.

        Poolers, language heads and convolutions are such layers; a linear layer of a block among them is a sign that
        the structure was not understood, and that a site map is needed.
        """
        from adapter_export.sites.index import FlowIndex

        index = FlowIndex(self.flow)
        ways = (index.between(site.u, site.h) for site in self.map.of_roles(("linear",)) if site.u is not None)
        placed = {at for way in ways for at in way}
        found = (node for at, node in enumerate(index.nodes) if at not in placed)
        nodes = (node for node in found if node.multiplies and node.weighted)
        return tuple(dict.fromkeys(node.path or node.name for node in nodes))

    def table(self) -> Table:
        """The sublayers: name, role, width of the residual stream, torch path, replaced value, what reads the sum."""
        columns = ("site", "role", "width", "torch path", "value", "followed by")
        found = self.map.sublayers
        rows = [(site.name, site.role, site.width, site.path or "", site.h, site.followed_by) for site in found]
        return Table(columns, rows, numbers="llr")

    def inner_table(self) -> Table:
        """The linear layers and the embeddings; those that differ in the number of their layer alone share a row."""
        rows: dict[tuple[str, str, str, str], list[str]] = {}
        for site in self.map.of_roles(("embeddings", "linear")):
            width = f"{site.width_in} → {site.width}" if site.u is not None else f"{site.width}"
            parts = ", ".join(f"{name} {start}–{end}" for name, (start, end) in site.parts.items())
            parts += f" of each {site.width // site.blocks}" if site.blocks > 1 else ""
            path = re.sub(r"\b\d+\b", "*", site.path or "", count=1)
            rows.setdefault((_LAYER.sub("", site.name, count=1), width, parts, path), []).append(site.name)
        cells = [
            (*key, names[0] if len(names) == 1 else f"{names[0]} …  ({len(names)})") for key, names in rows.items()
        ]
        return Table(("inside", "width", "parts", "torch path", "site"), cells)

    def branches(self) -> list[Branch]:
        """The layers from first to last, those of one structure together."""
        layers = [(name, tuple(members)) for name, members in groupby(self.map.sublayers, key=_layer_name)]
        return [self._branch(list(run)) for _, run in groupby(layers, key=_structure)]

    def _branch(self, run: Sequence[tuple[str, tuple[Site, ...]]]) -> Branch:
        (first, members), last = run[0], run[-1][0]
        sublayers = tuple((site.role, site.followed_by, tuple(self._inside(site))) for site in members)
        return Branch(first, last, len(run), sublayers)

    def _inside(self, sublayer: Site) -> Iterable[str]:
        start = f"{sublayer.name}."
        found = self.map.of_roles(("linear", "part"))
        return (site.name.removeprefix(start) for site in found if site.name.startswith(start))

    def drawing(self) -> str:
        """The layers as a tree of text; layers of one structure are drawn once."""
        lines = []
        for branch in self.branches():
            lines.append(f"├── {branch.name}")
            for number, (role, follower, inside) in enumerate(branch.sublayers):
                last = number == len(branch.sublayers) - 1
                lines.append(f"│   {'└' if last else '├'}── {role}  h + x → {follower}   ▣ site")
                if inside:
                    lines.append(f"│   {' ' if last else '│'}   └── {'  '.join(f'{name} ▫' for name in inside)}")
        return "\n".join([*lines, f"└── {self.map.final}  ▣ head"])

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return {
            "model": None if self.base.path is None else str(self.base.path),
            "form": self.base.form,
            "fingerprint": self.base.fingerprint,
            "width": self.map.width,
            "final": self.map.final,
            "sites": [asdict(site) for site in self.map.sublayers],
            "linear": [asdict(site) for site in self.map.of_roles(("linear",))],
            "parts": [asdict(site) for site in self.map.of_roles(("part",))],
            "embeddings": [asdict(site) for site in self.map.of_roles(("embeddings",))],
            "not_placed": list(self.not_placed),
        }

    def write_site_map(self, path: Path | str, *, force: bool = False) -> None:
        """Write the sites as a site map, to be edited; that of a torch base has the names of its ONNX graph as well.

        Raises:
            OutputExistsError, WriteError: the file cannot be written.
        """
        from adapter_export.format.site_map_json import write_site_map

        with TemporaryDirectory(prefix="adapter-export-") as folder:
            views: dict[View, SiteMap] = {"onnx": self.base.exported(Path(folder)).sites}
        if not self.base.is_onnx:
            views["torch"] = self.map
        write_site_map(views, Path(path), force=force)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.inner_table()}\n\n{self.drawing()}"

    def _repr_html_(self) -> str:
        return f"{self.table()._repr_html_()}<pre>{html.escape(self.drawing())}</pre>"


def _layer_name(site: Site) -> str:
    found = _LAYER.search(site.name)
    return f"layers.{site.layer}" if found is None else site.name[: found.end() - 1]


def _structure(layer: tuple[str, tuple[Site, ...]]) -> tuple[object, ...]:
    name, members = layer
    return name.partition("layers.")[0], *((site.role, site.width, site.followed_by) for site in members)
