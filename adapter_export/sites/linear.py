"""The linear layers inside the sublayers of a base, as sites."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set

from adapter_export.sites.index import FlowIndex
from adapter_export.sites.layer import Layer, layer_of
from adapter_export.sites.pieces import Piece, pieces_of
from adapter_export.sites.site import Site
from adapter_export.sites.turned import is_turned
from adapter_export.sites.wiring import PACKED, Wiring, attention_wiring, ffn_wiring

_JOINED: Mapping[frozenset[str], str] = {
    frozenset({"query", "key", "value"}): "qkv",
    frozenset({"query", "key"}): "qk",
    frozenset({"key", "value"}): "kv",
    frozenset({"gate", "up"}): "gate_up",
}
"""The names of fused layers."""

_KEPT = frozenset({"query", "key", "value", "output", "gate", "up", "down", *_JOINED.values()})
"""Names that say what a layer does; no layer has one of them for the name of its module alone."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def linear_sites(index: FlowIndex, sublayer: Site, ends: Collection[str]) -> Iterator[Site]:
    """The linear layers of a sublayer, in the order of evaluation.

    Args:
        index: the graph of the base.
        sublayer: the sublayer.
        ends: the values of the residual stream, at which sublayers begin and end.
    """
    assert sublayer.x is not None  # a sublayer has one
    nodes = [index.nodes[at] for at in index.between(sublayer.x, sublayer.h)]
    find = ffn_wiring if sublayer.role == "ffn" else attention_wiring
    wiring = find(index, nodes, sublayer.h, frozenset(ends))
    products = {node.name: node for node in nodes if node.linear} | wiring.layers
    layers = [layer for product in products.values() if (layer := layer_of(index, product)) is not None]
    layers.sort(key=lambda layer: index.position(layer.h))
    for layer, name in zip(layers, _names(layers, wiring), strict=True):
        yield _site(index, layer, sublayer, name, wiring)


def _site(index: FlowIndex, layer: Layer, sublayer: Site, name: str, wiring: Wiring) -> Site:
    parts = _parts(index, layer, wiring)
    return Site(
        name=f"{sublayer.name}.{name}",
        role="linear",
        layer=sublayer.layer,
        width=index.flow.width(layer.h) or 0,
        width_in=index.flow.width(layer.u) or 0,
        h=layer.h,
        x=None,
        u=layer.u,
        y=None,
        norm=None,
        residual=None,
        path=layer.product.path,
        followed_by="",
        parts={name: (piece.start, piece.end) for name, piece in parts.items()},
        blocks=max((piece.blocks for piece in parts.values()), default=1),
        turned=is_turned(index, layer.u, [sublayer.x] if sublayer.x is not None else []),
    )


def _parts(index: FlowIndex, layer: Layer, wiring: Wiring) -> dict[str, Piece]:
    """The parts of a fused layer's output; none if not each of them is known to be one piece."""
    roles = wiring.roles.get(layer.product.name, set())
    if len(roles) < 2:
        return {}
    pieces = pieces_of(index, layer.h)
    found = {role: [pieces[name] for name in pieces if name in wiring.sources[role]] for role in roles}
    for node in index.readers(layer.h):
        for role, (start, end) in zip(PACKED, node.packed, strict=False):
            found.setdefault(role, []).append(Piece(start, end))
    several = any(len(set(places)) != 1 for places in found.values())
    if several or len({places[0].blocks for places in found.values()}) > 1:
        return {}
    return dict(sorted(((role, places[0]) for role, places in found.items()), key=lambda part: part[1]))


def _names(layers: Sequence[Layer], wiring: Wiring) -> list[str]:
    """A name for each: by what it does; else that of its module; else a number."""
    names = [_own_name(wiring.roles.get(layer.product.name, set())) for layer in layers]
    unique = {name for name, count in Counter(names).items() if count == 1}
    others = [_module_name(layer.product.path) for layer in layers]
    counts = Counter(other for name, other in zip(names, others, strict=True) if name not in unique)
    numbers = iter(range(len(layers)))
    return [
        name
        if name in unique and name is not None
        else other
        if other is not None and counts[other] == 1
        else f"linear{next(numbers)}"
        for name, other in zip(names, others, strict=True)
    ]


def _own_name(roles: Set[str]) -> str | None:
    return next(iter(roles)) if len(roles) == 1 else _JOINED.get(frozenset(roles))


def _module_name(path: str | None) -> str | None:
    last = (path or "").rpartition(".")[2]
    return last if _NAME.fullmatch(last) and last not in _KEPT else None
