"""The surgery on a base, planned on its dataflow graph and done node by node on an ONNX graph or an FX graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from adapter_export.errors import NoSitesError
from adapter_export.sites.site import LAYERS, Site
from adapter_export.sites.view import FlowIndex, Piece

Place = tuple[Site, str]
"""A site, and which of its values is replaced: `u`, `h` or `y`."""


class Ref(NamedTuple):
    """A value or a node of the base, or what replaced it, by its name in the view.

    `layer` is the site whose layer alone reads it; empty where everyone does.
    """

    name: str
    layer: str = ""


@dataclass(frozen=True)
class Rewiring:
    """A node that reads `new` instead of `old`.

    If it prepares `old` for other layers as well, it stays, and a copy of it reads `new`: `outputs` are what it
    defines.
    """

    node: Ref
    old: Ref
    new: Ref
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Edit:
    """The replacement of one of a site's values, `u`, `h` or `y`, by `result`.

    `values` stand for the site's values by then. In a fused layer, `piece` are the features of `h` that the site is;
    the others stay. All consumers of `h` and `y` read the new value; only the nodes of `rewirings` do for `u`.
    """

    site: Site
    replaced: str
    values: Mapping[str, Ref]
    result: Ref
    piece: Piece | None
    rewirings: tuple[Rewiring, ...] = ()


def plan_edits(index: FlowIndex, places: Iterable[Place]) -> list[Edit]:
    """Plan the replacement of values, in an order in which each is replaced before anyone reads it.

    One value may be several: the last linear layer's `h` is its sublayer's, and a block's `y` is what the next one
    reads. Then who makes it comes before who reads it, an inner layer's output before the outer one's, a fused layer's
    before its splits', and what the outer layer reads before what the inner one reads. Raises as `input_consumers`.
    """

    def order(place: Place) -> tuple[int, int]:
        site, replaced = place
        outputs = {"linear": 0, "part": 1}.get(site.role, 2)
        ranks = {"h": outputs, "y": 3, "u": 5 if site.role in LAYERS else 4}
        return index.position(getattr(site, replaced)), ranks[replaced]

    planner = _Planner(index)
    return [planner.edit(*place) for place in sorted(places, key=order)]


class _Planner:
    """Follows what each node reads while values are replaced."""

    def __init__(self, index: FlowIndex) -> None:
        self._index = index
        # by node and name of the value; where nothing is, what everyone reads
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
        """The value that a layer's own nodes read as `u`: an edit of a sublayer around it may have replaced it."""
        node, found = Ref(within.consumer), Ref("")
        for value in within.trail:
            found = self._read.get((node, value), Ref(value))
            producer = self._index.producer(value)
            node = Ref("" if producer is None else producer.name, found.layer)
        return found

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
    """The nodes through which `u` goes into a layer.

    `consumers` read `u`, or what a shared node makes of it. `shared` prepare `u` for this layer and others, such as a
    quantisation that three projections have in common, so that a copy must be made before one of them can read
    something else. `trail` are the values on a way from one `consumer` back to `u`.
    """

    consumers: frozenset[str]
    shared: frozenset[str]
    consumer: str
    trail: tuple[str, ...]


def input_consumers(index: FlowIndex, site: Site) -> InputConsumers:
    """Find where a site's layer reads its `u`; raises `NoSitesError` if nothing on the way to its `h` does.

    A value behind a product, such as the keys and values that a decoder caches, belongs to the layer.
    """
    assert site.u is not None  # who replaces `u` has been told that there is one
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
            "nothing in a layer reads its input, so that it cannot be replaced",
            where=f"site `{site.name}`",
            found=f"`{site.u}`",
            fix="choose an adapter that replaces the output `h` there",
        )
    consumer = next(iter(consumers))
    return InputConsumers(frozenset(consumers), frozenset(shared), consumer, consumers[consumer])


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
