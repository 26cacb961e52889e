"""Edits of a base, planned on its dataflow graph and applied to an ONNX or FX graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from adapter_export.errors import NoSitesError
from adapter_export.sites.site import LAYERS, Site
from adapter_export.sites.view import FlowIndex, Piece

Place = tuple[Site, str]
"""A site, and the value to replace: `u`, `h` or `y`."""


class Ref(NamedTuple):
    """A value or node of the base, or its replacement, by name in the view.

    `layer` is the site whose layer is the only reader; empty for any reader.
    """

    name: str
    layer: str = ""


@dataclass(frozen=True)
class Rewiring:
    """A node that reads `new` instead of `old`.

    If it also prepares `old` for other layers, it is kept, and a copy of it reads `new`: `outputs` are its results.
    """

    node: Ref
    old: Ref
    new: Ref
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Edit:
    """Replacement of one of a site's values, `u`, `h` or `y`, by `result`.

    `values` are the current replacements of the site's values. In a fused layer, `piece` are the site's features of
    `h`; others are kept. All consumers of `h` and `y` read the new value; for `u`, only the nodes of `rewirings`.
    """

    site: Site
    replaced: str
    values: Mapping[str, Ref]
    result: Ref
    piece: Piece | None
    rewirings: tuple[Rewiring, ...] = ()


def plan_edits(index: FlowIndex, places: Iterable[Place]) -> list[Edit]:
    """Plan the replacement of values, in an order in which each is replaced before it is read.

    A value may have several roles: the last linear layer's `h` is its sublayer's, and a block's `y` is the next block's
    input. Then producers precede readers, an inner layer's output precedes the outer one's, a fused layer's precedes
    its splits', and the outer layer's input precedes the inner one's. For errors see `input_consumers`.
    """

    def order(place: Place) -> tuple[int, int]:
        site, replaced = place
        outputs = {"linear": 0, "lookup": 0, "part": 1}.get(site.role, 2)
        ranks = {"h": outputs, "y": 3, "u": 5 if site.role in LAYERS else 4}
        return index.position(getattr(site, replaced)), ranks[replaced]

    planner = _Planner(index)
    return [planner.edit(*place) for place in sorted(places, key=order)]


class _Planner:
    """Tracks the inputs of nodes while values are replaced."""

    def __init__(self, index: FlowIndex) -> None:
        self._index = index
        # by node and value name; defaults to the common replacement
        self._read: dict[tuple[Ref, str], Ref] = {}
        self._copies: dict[str, list[Ref]] = {}
        self._inputs: dict[str, Ref] = {}

    def edit(self, site: Site, replaced: str) -> Edit:
        values = {name: Ref(value) for name in ("h", "x", "u", "y") if (value := getattr(site, name)) is not None}
        within = input_consumers(self._index, site) if site.role in LAYERS or replaced == "u" else None
        if site.name in self._inputs:
            values["u"] = self._inputs[site.name]
        elif within is not None and site.role in LAYERS:
            values["u"] = self._read_by(within)
        piece = Piece(*next(iter(site.parts.values())), site.blocks) if site.role == "part" else None
        if replaced != "u" or within is None:
            return Edit(site, replaced, values, values[replaced], piece)
        result = self._inputs[site.name] = Ref(values["u"].name, site.name)
        return Edit(site, replaced, values, result, piece, tuple(self._rewired(values["u"], result, within)))

    def _read_by(self, within: InputConsumers) -> Ref:
        """Return the value that a layer's nodes read as `u`, possibly replaced by an edit of the outer sublayer."""
        node, reference = Ref(within.consumer), Ref("")
        for value in within.trail:
            reference = self._read.get((node, value), Ref(value))
            producer = self._index.producer(value)
            node = Ref("" if producer is None else producer.name, reference.layer)
        return reference

    def _rewired(self, old: Ref, new: Ref, within: InputConsumers) -> Iterator[Rewiring]:
        for node in self._index.readers(old.name):
            copies = self._copies.setdefault(node.name, [])
            for at in (Ref(node.name), *copies):
                if self._read.get((at, old.name), Ref(old.name)) != old:
                    continue
                if node.name in within.consumers or at.layer == new.layer:
                    self._read[at, old.name] = new
                    yield Rewiring(at, old, new)
                elif node.name in within.shared and Ref(node.name, new.layer) not in copies:
                    copy = Ref(node.name, new.layer)
                    copies.append(copy)
                    self._read |= {(copy, value): self._read.get((at, value), Ref(value)) for value in node.inputs}
                    self._read[copy, old.name] = new
                    yield Rewiring(at, old, new, node.outputs)
                    for value in node.outputs:
                        yield from self._rewired(Ref(value, at.layer), Ref(value, new.layer), within)


@dataclass(frozen=True)
class InputConsumers:
    """Nodes through which `u` enters a layer.

    `consumers` read `u`, or the result of a shared node. `shared` nodes prepare `u` for several layers, such as a
    quantisation for three projections, and must be copied before one layer reads another value. `trail` are the values
    on a path from one consumer back to `u`.
    """

    consumers: frozenset[str]
    shared: frozenset[str]
    consumer: str
    trail: tuple[str, ...]


def input_consumers(index: FlowIndex, site: Site) -> InputConsumers:
    """Find the nodes of a site's layer that read its `u`; NoSitesError if none on the paths to its `h` does.

    A value after a product, such as cached keys and values of a decoder, belongs to the layer.
    """
    assert site.u is not None  # callers check that the site has `u`
    way = set(index.between(site.u, site.h))
    leaving = _leaving(index, way, site.h)
    shared: set[str] = set()
    trails: dict[str, tuple[str, ...]] = {site.u: (site.u,)}
    consumers: dict[str, tuple[str, ...]] = {}
    waiting = [site.u]
    while waiting:
        value = waiting.pop()
        for node in index.readers(value):
            at = index.position(node.outputs[0])
            if at in leaving:
                shared.add(node.name)
                waiting.extend(name for name in node.outputs if name not in trails)
                trails.update((name, (name, *trails[value])) for name in node.outputs)
            elif at in way:
                consumers[node.name] = trails[value]
    if not consumers:
        raise NoSitesError(
            "no node of the layer reads its input, so that it cannot be replaced",
            where=f"site `{site.name}`",
            found=f"`{site.u}`",
            fix="choose an adapter that replaces the output `h` there",
        )
    consumer = next(iter(consumers))
    return InputConsumers(frozenset(consumers), frozenset(shared), consumer, consumers[consumer])


def _leaving(index: FlowIndex, way: set[int], h: str) -> set[int]:
    """Return positions of nodes with a path out of the layer that avoids products and `h`."""
    leaving: set[int] = set()
    for at in sorted(way, reverse=True):
        node = index.nodes[at]
        if node.multiplies or h in node.outputs:
            continue
        read = {index.position(reader.outputs[0]) for value in node.outputs for reader in index.readers(value)}
        if read & leaving or read - way or not set(node.outputs).isdisjoint(index.flow.outputs):
            leaving.add(at)
    return leaving
