"""Which sites a kind of adapter acts at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

_LAYER_ROLES = ("linear", "part")
"""The roles of the sites around one layer, or one part of a fused layer, which `Places` selects by their names."""

_FUSED = {
    "qkv": ("query", "key", "value"),
    "qk": ("query", "key"),
    "kv": ("key", "value"),
    "gate_up": ("gate", "up"),
}
"""What fused layers compute, by their names."""

_SUBLAYERS = frozenset({"attention", "cross_attention", "ffn"})
_LAYER = re.compile(r"\blayers\.\d+\.")


class Place(Protocol):
    """What a kind must know of a site."""

    @property
    def name(self) -> str:
        """Canonical, such as `layers.3.ffn`."""

    @property
    def role(self) -> str:
        """`attention`, `cross_attention`, `ffn`, `linear`, `part` of a fused linear layer, or `embeddings`."""

    @property
    def layer(self) -> int | None:
        """Counted from 0; none for the embeddings."""

    @property
    def width(self) -> int:
        """Of `h`."""

    @property
    def width_in(self) -> int:
        """Of `u`."""

    @property
    def parts(self) -> Mapping[str, tuple[int, int]]:
        """The layers that a fused linear layer computes together."""


@dataclass(frozen=True)
class Places:
    """Which sites.

    Attributes:
        roles: those of the roles `attention`, `cross_attention`, `ffn` or `embeddings`; those of one of several
            streams as `decoder.ffn`.
        linears: those around linear layers, or parts of fused ones, with these names, or ends of names: `query`,
            `attention.output`.
        leave_out: the layers that are left out (AdapterDrop, Rücklé et al. 2021, §3).
    """

    roles: tuple[str, ...] = ()
    linears: tuple[str, ...] = ()
    leave_out: tuple[int, ...] = ()

    def hold(self, site: Place) -> bool:
        """Whether a site is one of them."""
        if site.layer is not None and site.layer in self.leave_out:
            return False
        if site.role in _LAYER_ROLES:
            return any(_is_named(site, name) for name in self.linears)
        return site.role in self.roles or without_layer(site) in self.roles

    def absent(self, sites: Iterable[Place]) -> list[str]:
        """What of it the sites lack, in words: a linear layer of each name, and a site of one of the roles."""
        held = [site for site in sites if self.hold(site)]
        names = [name for name in self.linears if not any(_is_named(site, name) for site in held)]
        alone = replace(self, linears=())
        roles = [str(alone)] if self.roles and not any(alone.hold(site) for site in held) else []
        return [*roles, *(f"`{name}`" for name in names)]

    @property
    def are_sublayers(self) -> bool:
        """Whether there are sublayers among the roles."""
        return any(role.rpartition(".")[2] in _SUBLAYERS for role in self.roles)

    def __str__(self) -> str:
        names = " or ".join([*self.roles, *(f"`{name}`" for name in self.linears)])
        left_out = ", ".join(map(str, self.leave_out))
        return f"{names} outside the layers {left_out}" if left_out else names


def without_layer(site: Place) -> str:
    """`attention.query` of `layers.3.attention.query`, `decoder.ffn` of `decoder.layers.3.ffn`."""
    return _LAYER.sub("", site.name, count=1)


def _is_named(site: Place, name: str) -> bool:
    return f".{without_layer(site)}".endswith(f".{name}")


def fused_instead(absent: Iterable[str], sites: Iterable[Place]) -> str | None:
    """The advice to name the fused layer of which those that are absent are parts, where these are not told apart."""
    for site in sites:
        within = _FUSED.get(site.name.rpartition(".")[2], ())
        parts = [name for name in absent if name.strip("`").rpartition(".")[2] in within]
        if parts:
            known = f"the base computes {', '.join(parts)} in one layer, mixed"
            return f"{known}: name `{without_layer(site)}` instead, or give its parts in a site map"
    return None
