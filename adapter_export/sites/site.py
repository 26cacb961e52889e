"""A site, and what a base has of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Role = Literal["attention", "ffn"]


@dataclass(frozen=True)
class Site:
    """One sublayer of the base, as values of its dataflow graph (names of the view that found it).

    Attributes:
        name: canonical, such as `layers.3.attention`.
        role: `attention` if the sublayer multiplies activations with activations, else `ffn`.
        layer: counted from 0.
        width: the width `d` of the residual stream.
        h: the sublayer's output, before the residual add; like `x` and `u` [batch, tokens, d], or [batch·tokens, d] in
            a base that flattens them there.
        x: the residual stream at the sublayer's start.
        u: what the sublayer itself reads: `x` after the pre-norm where there is one, else `x`.
        residual: the node that adds `h`: to `x`, or to the sublayer beside it in a parallel block.
        path: the path of the module with the sublayer's last product, its output projection, if the exporter recorded
            it. A module that is called once per layer gives several sites the same path.
        followed_by: the kind of what reads the sum first, such as `norm`, or `output`.
    """

    name: str
    role: Role
    layer: int
    width: int
    h: str
    x: str
    u: str
    residual: str
    path: str | None
    followed_by: str


@dataclass(frozen=True)
class SiteMap:
    """All sites of a base, in the order of evaluation.

    Attributes:
        sites: the sublayers.
        final: the value that holds the final hidden state, [batch, tokens, d], which a head reads.
        width: the width of the final hidden state.
    """

    sites: tuple[Site, ...]
    final: str
    width: int

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def of_roles(self, roles: tuple[str, ...]) -> tuple[Site, ...]:
        """The sites whose role is one of `roles`."""
        return tuple(site for site in self.sites if site.role in roles)
