"""A neutral view of a dataflow graph for discovery, whichever framework the graph is from.

Its index says who reads what, what comes from what, and what lies between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import reduce
from math import prod
from operator import or_
from typing import Literal, NamedTuple

from adapter_export.sites.site import Norm

NodeKind = Literal["add", "product", "convolution", "attention", "norm", "activation", "layout", "other"]

Epilogue = Literal["bias", "rescale"]
"""The last step of a linear layer, behind its product: to add its bias, or to scale integers back."""

Dim = int | str | None
"""The length of an axis: a number, the graph's own name for an unknown number, or nothing known."""


@dataclass(frozen=True)
class Cut:
    """A slice [start, end) of one axis, counted from 0."""

    axis: int
    start: int
    end: int


@dataclass(frozen=True)
class FlowNode:
    """One operation on activations, by a unique name; `op` is the framework's own name, for tables.

    Attributes:
        kind: `add` is the sum or the difference of two activations; `norm` a layer or RMS norm in one node;
            `activation` a non-linear function of each number, the softmax among them; `layout` a transposition, a
            reshape or a cut.
        inputs: the activations it reads, in order, without weights, constants, and what is computed from these and from
            the lengths of axes alone.
        weighted: whether one of the factors of a product is a trained weight.
        norm: of a norm, and of the last piece of one that is written out; `normed` is what that reads.
        linear: whether it is the product of a linear layer, of an activation and the trained matrix `weight` [in, out].
        operands: the activations among the factors of a product, first the one whose index the rows of the result are;
            query, key and value of a fused attention, or what holds all three.
        contracts: of a product of one activation and a weight: the axis of the activation that it sums over, counted
            from the end, -1 for the last; `None` if unknown.
        terms: of a convolution: the maximum number of products summed in one element; `None` if unknown.
        epilogue: the step of a linear layer that it is; `bias` of a product that adds its bias itself.
        cuts: of a layout that cuts one axis: the slice of its input that each output is.
        order: of a layout that moves whole axes: the axis of its input for each axis of its output; `None` for a new
            axis of length 1.
        packed: of an attention that reads one value with query, key and value: the slice that each of them is.
    """

    name: str
    kind: NodeKind
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weighted: bool
    path: str | None = None
    norm: Norm | None = None
    normed: str | None = None
    linear: bool = False
    weight: str | None = None
    operands: tuple[str, ...] = ()
    contracts: int | None = None
    terms: int | None = None
    epilogue: Epilogue | None = None
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    order: tuple[int | None, ...] = ()
    packed: tuple[tuple[int, int], ...] = ()

    @property
    def multiplies(self) -> bool:
        """Return whether it mixes the features of a token or the tokens of a text: a product of any kind."""
        return self.kind in {"product", "convolution", "attention"}

    @property
    def mixes_tokens(self) -> bool:
        """Return whether it multiplies activations with activations, as attention alone does."""
        return self.kind == "attention" or (self.kind == "product" and not self.weighted)


@dataclass(frozen=True)
class FlowGraph:
    """A base seen as dataflow: the nodes that compute activations, in order, and the shapes that are known.

    `other_calls` counts linear layers of weights alone, by their module paths and the names of their matrices.
    """

    nodes: Sequence[FlowNode]
    shapes: Mapping[str, tuple[Dim, ...]]
    outputs: tuple[str, ...]
    other_calls: Mapping[str, int] = field(default_factory=dict)

    def rank(self, value: str) -> int | None:
        """The number of axes, if known."""
        shape = self.shapes.get(value)
        return None if shape is None else len(shape)

    def width(self, value: str) -> int | None:
        """The length of the last axis, if it is a known number."""
        shape = self.shapes.get(value)
        return shape[-1] if shape and isinstance(shape[-1], int) else None

    def alike(self, one: str, other: str) -> bool:
        """Return whether both have as many axes, of lengths that do not contradict each other.

        A number and a name do: the mean over the tokens is [batch, 1, d]. Two names may stand for one length.
        """
        first, second = self.shapes.get(one), self.shapes.get(other)
        if first is None or second is None or len(first) != len(second):
            return False
        pairs = zip(first, second, strict=True)
        return all(a == b or None in (a, b) or (isinstance(a, str) and isinstance(b, str)) for a, b in pairs)


def convolved(weight: Sequence[Dim] | None, *, transposed: bool) -> int | None:
    """The most products that a number of a convolution's result adds up, by the shape of its weight.

    That is [out, in, *kernel], or [in, out, *kernel] if it is transposed.
    """
    sizes = [size for axis, size in enumerate(weight or ()) if axis != transposed]
    known = [size for size in sizes if isinstance(size, int)]
    return prod(known) if known and len(known) == len(sizes) else None


def rows_first(equation: str, operands: tuple[str, ...]) -> tuple[str, ...]:
    """The two operands of an Einstein sum, that first whose index is not the last of the result."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    indices = terms.split(",")
    if not arrow or len(operands) != 2 or len(indices) != 2 or not result:
        return operands
    columns_first = result[-1] in indices[0] and result[-1] not in indices[1]
    return operands[::-1] if columns_first else operands


class Origins(NamedTuple):
    """The tracked values that a value is computed from, as bit sets: bit `i` is the `i`-th tracked value.

    From those in `weighted` some way leads through a product with trained weights, in `mixed` through one of
    activations with activations, in `multiplied` through any, in `straight` through none: norms, dropouts, casts,
    sums, and factors that may be computed from it as well, as those of a gate.
    """

    all: int = 0
    weighted: int = 0
    mixed: int = 0
    multiplied: int = 0
    straight: int = 0

    @property
    def unmultiplied(self) -> int:
        """Tracked values with no path through a product: at most norms, dropouts, casts and scales."""
        return self.all & ~self.multiplied


class Step(NamedTuple):
    """An operation of a graph on its way to a view: the names of what it reads and defines, and what it does."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    multiplies: bool
    adds: bool


def constant_starts(steps: Iterable[Step], constants: Set[str]) -> set[str]:
    """Choose the constants from which a residual stream starts, such as learned queries repeated for each row.

    `constants` [batch, tokens, d] are computed from weights and the lengths of axes alone. Where one of them is added
    to what is computed from it through a product, those are chosen that it is made of, and are made of none.
    """
    bits = {name: 1 << at for at, name in enumerate(sorted(constants))}
    origins: dict[str, Origins] = {}
    made = used = 0
    for step in steps:
        read = [origins.get(name, Origins()) for name in step.inputs]
        everything = reduce(or_, (each.all for each in read), 0)
        multiplied = reduce(or_, (each.multiplied for each in read), 0)
        straight = reduce(or_, (each.straight for each in read), 0)
        if step.adds:
            sides = (side for name, side in zip(step.inputs, read, strict=True) if name in constants)
            used |= reduce(or_, (side.all for side in sides if side.straight & multiplied), 0)
        if step.multiplies:
            multiplied, straight = everything, 0
        for name in step.outputs:
            bit = bits.get(name, 0)
            made |= bit if everything else 0
            origins[name] = Origins(everything | bit, multiplied=multiplied, straight=straight | bit)
    return {name for name, bit in bits.items() if bit & used & ~made}


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
            everything = weighted = mixed = multiplied = straight = 0
            for read in map(self.of, node.inputs):
                everything |= read.all
                weighted |= read.weighted
                mixed |= read.mixed
                multiplied |= read.multiplied
                straight |= read.straight
            if node.epilogue == "rescale":  # its scales are computed from what the product read, and hold nothing of it
                straight = 0
            if node.multiplies:
                multiplied, straight = multiplied | everything, 0
                weighted |= everything if node.weighted else 0
                mixed |= everything if node.mixes_tokens else 0
            for name in node.outputs:
                self._define(flow, name, Origins(everything, weighted, mixed, multiplied, straight))

    def _define(self, flow: FlowGraph, name: str, origins: Origins) -> None:
        if is_stream(flow, name):
            self._bits[name] = 1 << len(self._tracked)
            self._tracked.append(name)
            bit = self._bits[name]
            origins = origins._replace(all=origins.all | bit, straight=origins.straight | bit)
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

    def is_straight(self, x: str, value: str) -> bool:
        """Return whether `value` is computed from `x` on some way without any product."""
        return bool(self.of(value).straight & self.bit(x))

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
        """Return the node that defines a value, or `None` for an input of the graph."""
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

    `places` is the index of each axis among them; `None` for an axis before the features.
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
