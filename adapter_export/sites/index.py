"""An index of a dataflow graph: who reads what, what comes from what, what lies between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import replace
from math import prod
from typing import NamedTuple

from adapter_export.sites.view import FlowGraph, FlowNode


class Origins(NamedTuple):
    """The tracked values that a value is computed from, as bit sets: bit `i` stands for the `i`-th tracked value.

    From those in `weighted` some way leads through a product with trained weights, in `mixed` through one of
    activations with activations, in `multiplied` through any.
    """

    all: int = 0
    weighted: int = 0
    mixed: int = 0
    multiplied: int = 0

    @property
    def unmultiplied(self) -> int:
        """Those from which no way leads through a product: norms, dropouts, casts and scales at most."""
        return self.all & ~self.multiplied


class Ancestry:
    """The origins of every value, found in one pass over the graph.

    Only possible residual streams [batch, tokens, d] are tracked, so that a set of them is one Python integer.
    """

    def __init__(self, flow: FlowGraph) -> None:
        self._tracked: list[str] = []
        self._bits: dict[str, int] = {}
        self._origins: dict[str, Origins] = {}
        defined = {name for node in flow.nodes for name in node.outputs}
        for name in dict.fromkeys(name for node in flow.nodes for name in node.inputs if name not in defined):
            self._define(flow, name, Origins())
        for node in flow.nodes:
            everything = weighted = mixed = multiplied = 0
            for read in map(self.of, node.inputs):
                everything |= read.all
                weighted |= read.weighted
                mixed |= read.mixed
                multiplied |= read.multiplied
            if node.multiplies:
                multiplied |= everything
                weighted |= everything if node.weighted else 0
                mixed |= everything if node.mixes_tokens else 0
            for name in node.outputs:
                self._define(flow, name, Origins(everything, weighted, mixed, multiplied))

    def _define(self, flow: FlowGraph, name: str, origins: Origins) -> None:
        if is_stream(flow, name):
            self._bits[name] = 1 << len(self._tracked)
            self._tracked.append(name)
            origins = origins._replace(all=origins.all | self._bits[name])
        self._origins[name] = origins

    def of(self, value: str) -> Origins:
        """Return what `value` is computed from."""
        return self._origins[value]

    def bit(self, value: str) -> int:
        """The bit of a tracked value; 0 for any other."""
        return self._bits.get(value, 0)

    def depends(self, value: str, *, on: str) -> bool:
        """Return whether `value` is computed from the tracked value `on`, or is it."""
        return bool(self.of(value).all & self.bit(on))

    def is_weighted(self, x: str, h: str) -> bool:
        """Return whether `h` is computed from `x` through a product with trained weights."""
        return bool(self.of(h).weighted & self.bit(x))

    def is_mixed(self, x: str, h: str) -> bool:
        """Return whether `h` is computed from `x` through a product of activations with activations."""
        return bool(self.of(h).mixed & self.bit(x))

    def latest(self, bits: int) -> str | None:
        """The last defined of a set of tracked values."""
        return self._tracked[bits.bit_length() - 1] if bits else None


def is_stream(flow: FlowGraph, value: str) -> bool:
    """Return whether a value has the shape of a stream: [batch, tokens, d] or [batch·tokens, d], with a known d."""
    return flow.rank(value) in (2, 3) and flow.width(value) is not None


class FlowIndex:
    """A graph without the nodes that no result depends on; a position is an index into its nodes."""

    def __init__(self, flow: FlowGraph) -> None:
        needed = set(flow.outputs)
        live = []
        for node in reversed(flow.nodes):
            if not needed.isdisjoint(node.outputs):
                needed.update(node.inputs)
                live.append(node)
        self.nodes = live[::-1]
        self.flow = replace(flow, nodes=self.nodes)
        self.ancestry = Ancestry(self.flow)
        self._producers = {name: at for at, node in enumerate(self.nodes) for name in node.outputs}
        self._readers: dict[str, list[int]] = {}
        for at, node in enumerate(self.nodes):
            for name in node.inputs:
                self._readers.setdefault(name, []).append(at)

    def producer(self, value: str) -> FlowNode | None:
        """The node that defines it; none for an input of the graph."""
        at = self._producers.get(value)
        return None if at is None else self.nodes[at]

    def position(self, value: str) -> int:
        """The position of the node that defines it; before all of them for an input of the graph."""
        return self._producers.get(value, -1)

    def readers(self, value: str) -> list[FlowNode]:
        """The nodes that read it, in the order of evaluation."""
        return [self.nodes[at] for at in self._readers.get(value, ())]

    def between(self, x: str, h: str) -> list[int]:
        """The positions of the nodes on all ways from `x` to `h`, in the order of evaluation."""
        found: set[int] = set()
        waiting = [h]
        while waiting:
            value = waiting.pop()
            if value != x and self.ancestry.depends(value, on=x) and self._producers[value] not in found:
                found.add(self._producers[value])
                waiting.extend(self.nodes[self._producers[value]].inputs)
        return sorted(found)

    def computed_from(self, start: str) -> Iterator[int]:
        """The positions of the nodes that follow `start`, up to the first that reads something else as well."""
        derived = {start}
        for at in range(self.position(start) + 1, len(self.nodes)):
            node = self.nodes[at]
            if not derived.isdisjoint(node.inputs):
                if not derived.issuperset(node.inputs):
                    return
                derived.update(node.outputs)
                yield at

    def last_before_product(self, start: str, positions: Iterable[int], readers: Set[int] | None = None) -> str:
        """The last value that everything computed from `start` goes through, before any product or move of its axes.

        `positions` are the nodes behind `start` [batch, tokens, d] in order; only `readers` count as reading, if given.
        A way around the value, which is `start` or one like it, would have to read something earlier and be read later.
        """
        last, furthest = start, self._last_reader(start, readers)
        for at in positions:
            node = self.nodes[at]
            # statistics of a norm, which are less wide, may be reshaped
            as_wide = any(self.flow.width(name) == self.flow.width(start) for name in node.inputs)
            if node.multiplies or (node.kind == "layout" and as_wide):
                return last
            if furthest <= at and self.flow.alike(start, node.outputs[0]):
                last = node.outputs[0]
            furthest = max(furthest, *(self._last_reader(value, readers) for value in node.outputs))
        return last

    def _last_reader(self, value: str, readers: Set[int] | None) -> int:
        """The position of the last node that reads it; beyond all of them for a result that no node reads."""
        default = len(self.nodes) if value in self.flow.outputs else -1
        return max((at for at in self._readers.get(value, ()) if readers is None or at in readers), default=default)


class Piece(NamedTuple):
    """Some features of a value: the slice [start, end) of each of `blocks` equal blocks of them."""

    start: int
    end: int
    blocks: int = 1


class _View(NamedTuple):
    """A value with the features of another one on several axes of the lengths `inner`.

    `places` says for each axis which of those it is; none for one of the axes before the features.
    """

    value: str
    inner: tuple[int, ...]
    places: tuple[int | None, ...]


def pieces_of(index: FlowIndex, value: str) -> dict[str, Piece]:
    """The values that are cut out of the last axis of a value [..., width], or out of an axis that is made of it.

    A reshape may have put the features on several axes, as heads, and transpositions may have moved these.
    """
    flow, shape = index.flow, index.flow.shapes.get(value, ())
    if not shape or not isinstance(shape[-1], int):
        return {}
    outer = len(shape) - 1
    views = [_View(value, (shape[-1],), (*[None] * outer, 0))]
    for node in index.readers(value):  # reshapes that make several axes of the last one, and leave the others alone
        after = flow.shapes.get(node.outputs[0], ())
        inner = tuple(axis for axis in after[outer:] if isinstance(axis, int))
        splits = len(after) > len(shape) and len(inner) == len(after) - outer and prod(inner) == shape[-1]
        if splits and node.kind == "layout" and not node.cuts:
            views.append(_View(node.outputs[0], inner, (*[None] * outer, *range(len(inner)))))
    found = {}
    for view in views:  # which grow on the way
        for node in index.readers(view.value):
            if node.order and not node.cuts:
                places = tuple(None if axis is None else view.places[axis] for axis in node.order)
                views.append(view._replace(value=node.outputs[0], places=places))
            # a node that gives no tensor but all parts of one has others behind it that take them out
            whole = node.cuts or node.outputs[0] in flow.shapes
            for cutting in [node] if whole else index.readers(node.outputs[0]):
                for name, cut in cutting.cuts.items():
                    place = view.places[cut.axis]
                    if place is not None:
                        size = prod(view.inner[place + 1 :])
                        found[name] = Piece(cut.start * size, cut.end * size, prod(view.inner[:place]))
    return found
