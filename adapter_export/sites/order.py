"""In which order values of sites are replaced, so that each is replaced before anyone reads it."""

from __future__ import annotations

from collections.abc import Iterable

from adapter_export.sites.index import FlowIndex
from adapter_export.sites.site import LAYERS, Site

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
