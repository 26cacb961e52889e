"""Where adapters sit, as rows and columns to draw: the sites of the base down, the adapters across."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.graph.cost import cost
from adapter_export.graph.graph import SITE_VALUES

_LAYER = re.compile(r"(?P<layer>(?:.*\.)?\d+)\.(?P<place>.+)")
"""A site's name up to its layer, and its place in it: `decoder.layers.3`, `cross_attention.query`."""

_OF_THE_BASE = {symbol for shape in SITE_VALUES.values() for symbol in shape}
"""Widths that the base fixes."""


@dataclass(frozen=True)
class SiteRow:
    """A place where adapters can act.

    Attributes:
        name: the site, or `head`.
        layer: the layer that it is in, as the site's name says it; empty for what is in none.
        place: its name inside the layer.
        is_sublayer: whether it adds to the residual stream; a linear layer inside does not.
    """

    name: str
    layer: str
    place: str
    is_sublayer: bool


@dataclass(frozen=True)
class Cell:
    """What one adapter has at one place.

    Attributes:
        text: its own widths, such as that of the bottleneck, or its number of classes; empty if it has none.
        detail: the same at length.
    """

    text: str
    detail: str


@dataclass(frozen=True)
class Column:
    """One adapter.

    Attributes:
        name: what it is called.
        kind: the kind of its graphs.
        parameters: how many it has.
        cells: what it has, by site.
    """

    name: str
    kind: str
    parameters: int
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class PlacementMap:
    """What is drawn.

    Attributes:
        title: what it is a drawing of.
        rows: the places, in the order of the base.
        columns: the adapters.
    """

    title: str
    rows: tuple[SiteRow, ...]
    columns: tuple[Column, ...]


def placement_map(
    title: str, sites: Iterable[str], adapters: Sequence[tuple[str, Adapter]], always: Iterable[str]
) -> PlacementMap:
    """Lay adapters out over sites.

    Args:
        title: what it is a drawing of.
        sites: all sites of the base, in its order.
        adapters: the adapters, each with what it is called here.
        always: the sites that have a row even where no adapter acts.
    """
    wanted = {*always, *(site for _, adapter in adapters for site in adapter.placements)}
    names = [site for site in sites if site in wanted]
    names += [HEAD] * any(adapter.head is not None for _, adapter in adapters)
    return PlacementMap(title, tuple(map(_row, names)), tuple(_column(*pair) for pair in adapters))


def _row(name: str) -> SiteRow:
    found = _LAYER.fullmatch(name)
    if found is None:
        return SiteRow(name, "", name, True)
    return SiteRow(name, found["layer"], found["place"], "." not in found["place"])


def _column(name: str, adapter: Adapter) -> Column:
    cells = {}
    for owner, graph, widths in adapter.parts():
        own = {symbol: size for symbol, size in widths.items() if symbol not in _OF_THE_BASE}
        ops = " → ".join(node.op for node in graph.nodes)
        said = ", ".join(f"{symbol} {size}" for symbol, size in own.items())
        count = f"{cost(graph, widths).parameters:,} parameters"
        detail = "; ".join(part for part in (f"{name} at {owner}: {ops}", said, count) if part)
        cells[owner] = Cell("·".join(map(str, own.values())), detail)
    return Column(name, adapter.kind, adapter.cost().parameters, cells)
