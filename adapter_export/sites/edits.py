"""Where a layer reads its input `u`, so that what it reads can be replaced for it alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from adapter_export.errors import NoSitesError
from adapter_export.sites.index import FlowIndex
from adapter_export.sites.site import LAYERS, Site

# In which order values of sites are replaced, so that each is replaced before anyone reads it.

Place = tuple[Site, str]
"""A site, and which of its values is replaced: `u`, `h` or `y`."""


def in_order(places: Iterable[Place], index: FlowIndex) -> list[Place]:
    """Sort places by the order in which the base evaluates the values that are replaced.

    One value may be several: the last linear layer's `h` is its sublayer's, and a block's `y` is what the next one
    reads. Then who makes it comes before who reads it, an inner layer's output before that of the outer one, a fused
    layer's before those of its parts, and what the outer layer reads before what the inner one reads.
    """
    return sorted(places, key=lambda place: (index.position(value_of(*place)), _stage(*place)))


def value_of(site: Site, replaced: str) -> str:
    """The name of one of a site's values in the graph."""
    name = {"u": site.u, "h": site.h, "y": site.y}[replaced]
    assert name is not None  # who replaces a value has been told that it is there
    return name


def _stage(site: Site, replaced: str) -> int:
    inner = site.role in LAYERS
    outputs = {"linear": 0, "part": 1}.get(site.role, 2)
    return {"h": outputs, "y": 3, "u": 5 if inner else 4}[replaced]


@dataclass(frozen=True)
class Entrance:
    """The nodes through which `u` goes into a layer.

    The residual sum behind the layer reads `u` too where there is no pre-norm; it is no part of the layer. Nor is what
    reads `u` for another layer. A node that prepares `u` for both, such as a reshape or a quantisation that three
    projections have in common, must be there twice before one of them can read something else.

    Attributes:
        readers: the nodes of the layer that read `u`, or what a copied node makes of it.
        copied: the nodes that prepare `u` for this layer and for others.
        reader: one of the readers.
        back: the values on a way from it to `u`: what it reads, what that is made of, up to `u`.
    """

    readers: frozenset[str]
    copied: frozenset[str]
    reader: str
    back: tuple[str, ...]


def entrance(index: FlowIndex, site: Site) -> Entrance:
    """Find where a site's layer reads its `u`.

    What is behind a product belongs to the layer, whoever reads it: keys and values that a decoder keeps are computed
    from what the layer reads.

    Raises:
        NoSitesError: nothing on the way to the site's `h` reads `u`.
    """
    assert site.u is not None  # who replaces `u` has been told that there is one
    way = set(index.between(site.u, site.h))
    leaving = _leaving(index, way, site.h)
    copied: set[str] = set()
    back: dict[str, tuple[str, ...]] = {site.u: (site.u,)}
    readers: dict[str, tuple[str, ...]] = {}
    waiting = [site.u]
    while waiting:
        value = waiting.pop()
        for node in index.readers(value):
            at = index.position(node.outputs[0])
            if at in leaving:
                copied.add(node.name)
                waiting.extend(name for name in node.outputs if name not in back)
                back.update((name, (name, *back[value])) for name in node.outputs)
            elif at in way:
                readers[node.name] = back[value]
    if not readers:
        raise NoSitesError(
            "nothing in a layer reads its input, so that it cannot be replaced",
            where=f"site `{site.name}`",
            found=f"`{site.u}`",
            fix="choose an adapter that replaces the output `h` there",
        )
    reader = next(iter(readers))
    return Entrance(frozenset(readers), frozenset(copied), reader, readers[reader])


def _leaving(index: FlowIndex, way: set[int], h: str) -> set[int]:
    """The positions of nodes from which a way that meets no product leads out of the layer, not through `h`."""
    leaving: set[int] = set()
    for at in sorted(way, reverse=True):
        node = index.nodes[at]
        if node.multiplies or h in node.outputs:
            continue
        read = {index.position(reader.outputs[0]) for value in node.outputs for reader in index.readers(value)}
        if read & leaving or read - way or not set(node.outputs).isdisjoint(index.flow.outputs):
            leaving.add(at)
    return leaving
