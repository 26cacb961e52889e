"""Framework-independent view of a dataflow graph, for the discovery of sites.

Its index answers queries about readers, origins and paths.
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
"""Final step of a linear layer after its product: bias, or rescaling of integers."""

Dim = int | str | None
"""Axis length: a number, the graph's name of a dynamic length, or `None` if unknown."""


@dataclass(frozen=True)
class Cut:
    """A slice [start, end) of one axis, from 0."""

    axis: int
    start: int
    end: int


@dataclass(frozen=True)
class FlowNode:
    """One operation on activations, with a unique name; `op` is the framework's name, for tables.

    Attributes:
        kind: `add` is a sum or difference of two activations; `norm` a layer or RMS norm in one node; `activation` an
            elementwise non-linear function or a softmax; `layout` a transposition, reshape or slice.
        inputs: the activations it reads, in order, excluding weights, constants, and values computed only from these
            and axis lengths.
        weighted: whether one of the factors of a product is a trained weight.
        norm: for a norm, or the last node of a decomposed norm; `normed` is its input.
        linear: whether it is the product of a linear layer: an activation times the trained matrix `weight` [in, out].
            A lookup has its table as `weight`.
        operands: activations among the factors of a product, first the one that indexes the result's rows; query, key
            and value of a fused attention, or a packed value.
        contracts: for a product of one activation and a weight, the contracted axis of the activation, from the end, -1
            for the last; `None` if unknown.
        terms: for a convolution, the maximum number of products summed in one element; `None` if unknown.
        epilogue: its step in a linear layer; `bias` for a product that includes its bias.
        cuts: for a layout that slices one axis, the slice of its input for each output.
        order: for a layout that moves whole axes, the axis of its input for each axis of its output; `None` for a new
            axis of length 1.
        packed: for an attention with a packed input, the slices of query, key and value.
        rows: for a lookup of rows of a trained table by ids, the number of rows.
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
    rows: int | None = None

    @property
    def multiplies(self) -> bool:
        """Return whether it is any product, which mixes features of a token or tokens of a text."""
        return self.kind in {"product", "convolution", "attention"}

    @property
    def mixes_tokens(self) -> bool:
        """Return whether it multiplies activations with activations, as only attention does."""
        return self.kind == "attention" or (self.kind == "product" and not self.weighted)


HEAD_INPUT = "vocabulary_logits"
"""Output of a base that its heads read in place of the final hidden state: logits of a masked language model."""


@dataclass(frozen=True)
class FlowGraph:
    """Dataflow of a base: the nodes that compute activations, in order, and known shapes.

    `other_calls` counts linear layers on constants, by module path and matrix name. `head_input` is the value that
    heads read in place of the final hidden state, if the base has the output `HEAD_INPUT`.
    """

    nodes: Sequence[FlowNode]
    shapes: Mapping[str, tuple[Dim, ...]]
    outputs: tuple[str, ...]
    other_calls: Mapping[str, int] = field(default_factory=dict)
    head_input: str | None = None

    def rank(self, value: str) -> int | None:
        """Return the number of axes, if known."""
        shape = self.shapes.get(value)
        return None if shape is None else len(shape)

    def width(self, value: str) -> int | None:
        """Return the length of the last axis, if it is a known number."""
        shape = self.shapes.get(value)
        return shape[-1] if shape and isinstance(shape[-1], int) else None

    def alike(self, value: str, other: str) -> bool:
        """Return whether two values have equal ranks and compatible lengths.

        A number and a name are incompatible: the mean over the tokens is [batch, 1, d]. Two names may be equal lengths.
        """
        first, second = self.shapes.get(value), self.shapes.get(other)
        if first is None or second is None or len(first) != len(second):
            return False
        pairs = zip(first, second, strict=True)
        return all(a == b or None in (a, b) or (isinstance(a, str) and isinstance(b, str)) for a, b in pairs)


def convolved(weight: Sequence[Dim] | None, *, transposed: bool) -> int | None:
    """Return the maximum number of products summed in one element of a convolution, by its weight's shape.

    The shape is [out, in, *kernel], or [in, out, *kernel] for a transposed convolution.
    """
    sizes = [size for axis, size in enumerate(weight or ()) if axis != transposed]
    known = [size for size in sizes if isinstance(size, int)]
    return prod(known) if known and len(known) == len(sizes) else None


def rows_first(equation: str, operands: tuple[str, ...]) -> tuple[str, ...]:
    """Return the two operands of an Einstein sum, first the one that does not contribute the result's last index."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    indices = terms.split(",")
    if not arrow or len(operands) != 2 or len(indices) != 2 or not result:
        return operands
    columns_first = result[-1] in indices[0] and result[-1] not in indices[1]
    return operands[::-1] if columns_first else operands


class Origins(NamedTuple):
    """Tracked values that a value is computed from, as bit sets: bit `i` is the `i`-th tracked value.

    Values in `weighted` have a path through a product with trained weights, in `mixed` through a product of
    activations, in `multiplied` through any product, in `straight` through none: only norms, dropouts, casts, sums, and
    factors, such as those of a gate.
    """

    all: int = 0
    weighted: int = 0
    mixed: int = 0
    multiplied: int = 0
    straight: int = 0

    @property
    def unmultiplied(self) -> int:
        """Tracked values without a path through a product: only norms, dropouts, casts and scales."""
        return self.all & ~self.multiplied


class Step(NamedTuple):
    """An operation of a graph for conversion to a view: names of inputs and outputs, and its effect."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    multiplies: bool
    adds: bool


def constant_starts(steps: Iterable[Step], constants: Set[str]) -> set[str]:
    """Choose the constants that start a residual stream, such as learned queries repeated for each row.

    `constants` [batch, tokens, d] are computed only from weights and axis lengths. If one is added to a value computed
    from it through a product, its most basic constants are chosen.
    """
    bits = {name: 1 << at for at, name in enumerate(sorted(constants))}
    origins: dict[str, Origins] = {}
    derived = used = 0
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
            derived |= bit if everything else 0
            origins[name] = Origins(everything | bit, multiplied=multiplied, straight=straight | bit)
    return {name for name, bit in bits.items() if bit & used & ~derived}


class Ancestry:
    """The origins of every value, found in one pass over the graph.

    Only possible residual streams [batch, tokens, d] are tracked, so that a set fits into one Python integer.
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
            if node.epilogue == "rescale":  # its scales are computed from the product's input, but carry none of it
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
        """Return the origins of a value."""
        return self._origins[value]

    def bit(self, value: str) -> int:
        """Return the bit of a tracked value; 0 for other values."""
        return self._bits.get(value, 0)

    def depends(self, value: str, *, on: str) -> bool:
        """Return whether `value` is, or is computed from, the tracked value `on`."""
        return bool(self.of(value).all & self.bit(on))

    def is_straight(self, x: str, value: str) -> bool:
        """Return whether `value` is computed from `x` on a path without products."""
        return bool(self.of(value).straight & self.bit(x))

    def is_weighted(self, x: str, h: str) -> bool:
        """Return whether `h` is computed from `x` through a product with trained weights."""
        return bool(self.of(h).weighted & self.bit(x))

    def is_mixed(self, x: str, h: str) -> bool:
        """Return whether `h` is computed from `x` through a product of activations with activations."""
        return bool(self.of(h).mixed & self.bit(x))

    def latest(self, bits: int) -> str | None:
        """Return the value of a set that is defined last."""
        return self._tracked[bits.bit_length() - 1] if bits else None


def is_stream(flow: FlowGraph, value: str) -> bool:
    """Return whether a value has the shape of a stream: [batch, tokens, d] or [batch·tokens, d], with a known d."""
    return flow.rank(value) in (2, 3) and flow.width(value) is not None


class FlowIndex:
    """A graph without unused nodes; a position is an index into its nodes."""

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
        """Return the position of the node that defines a value; before all nodes for a graph input."""
        return self._producers.get(value, -1)

    def readers(self, value: str) -> list[FlowNode]:
        """Return the readers of a value, in order of evaluation."""
        return [self.nodes[at] for at in self._readers.get(value, ())]

    def between(self, x: str, h: str) -> list[int]:
        """Return the positions of the nodes on all paths from `x` to `h`, in order of evaluation."""
        positions: set[int] = set()
        waiting = [h]
        while waiting:
            value = waiting.pop()
            if value != x and self.ancestry.depends(value, on=x) and self._producers[value] not in positions:
                positions.add(self._producers[value])
                waiting.extend(self.nodes[self._producers[value]].inputs)
        return sorted(positions)

    def computed_from(self, start: str) -> Iterator[int]:
        """Yield the positions of the nodes that follow `start`, up to the first that also reads another value."""
        derived = {start}
        for at in range(self.position(start) + 1, len(self.nodes)):
            node = self.nodes[at]
            if not derived.isdisjoint(node.inputs):
                if not derived.issuperset(node.inputs):
                    return
                derived.update(node.outputs)
                yield at

    def last_before_product(self, start: str, positions: Iterable[int], readers: Set[int] | None = None) -> str:
        """Return the last value that all paths from `start` pass through, before any product or axis permutation.

        `positions` are the nodes after `start` [batch, tokens, d] in order; `readers` restricts the readers. A path
        around the value would read an earlier value and be read later.
        """
        last, furthest = start, self._last_reader(start, readers)
        for at in positions:
            node = self.nodes[at]
            # statistics of a norm, which are narrower, may be reshaped
            as_wide = any(self.flow.width(name) == self.flow.width(start) for name in node.inputs)
            if node.multiplies or (node.kind == "layout" and as_wide):
                return last
            if furthest <= at and self.flow.alike(start, node.outputs[0]):
                last = node.outputs[0]
            furthest = max(furthest, *(self._last_reader(value, readers) for value in node.outputs))
        return last

    def _last_reader(self, value: str, readers: Set[int] | None) -> int:
        """Return the position of the last reader of a value; beyond all nodes for a result without readers."""
        default = len(self.nodes) if value in self.flow.outputs else -1
        return max((at for at in self._readers.get(value, ()) if readers is None or at in readers), default=default)


class Piece(NamedTuple):
    """Features of a value: the slice [start, end) of each of `blocks` equal blocks."""

    start: int
    end: int
    blocks: int = 1


class _View(NamedTuple):
    """A value whose features are split into several axes of the lengths `inner`.

    `places` is the index of each axis in `inner`; `None` for an axis before the features.
    """

    value: str
    inner: tuple[int, ...]
    places: tuple[int | None, ...]


def pieces_of(index: FlowIndex, value: str) -> dict[str, Piece]:
    """Return the values sliced from the last axis of a value [..., width], or from an axis derived from it.

    A reshape may split the features into several axes, such as heads, and transpositions may move these.
    """
    flow, shape = index.flow, index.flow.shapes.get(value, ())
    if not shape or not isinstance(shape[-1], int):
        return {}
    outer = len(shape) - 1
    views = [_View(value, (shape[-1],), (*[None] * outer, 0))]
    for node in index.readers(value):  # reshapes that split only the last axis
        after = flow.shapes.get(node.outputs[0], ())
        inner = tuple(axis for axis in after[outer:] if isinstance(axis, int))
        splits = len(after) > len(shape) and len(inner) == len(after) - outer and prod(inner) == shape[-1]
        if splits and node.kind == "layout" and not node.cuts:
            views.append(_View(node.outputs[0], inner, (*[None] * outer, *range(len(inner)))))
    pieces = {}
    for view in views:  # which grow on the way
        for node in index.readers(view.value):
            if node.order and not node.cuts:
                places = tuple(None if axis is None else view.places[axis] for axis in node.order)
                views.append(view._replace(value=node.outputs[0], places=places))
            # a node that returns a list of parts is followed by nodes that select them
            whole = node.cuts or node.outputs[0] in flow.shapes
            for cutting in [node] if whole else index.readers(node.outputs[0]):
                for name, cut in cutting.cuts.items():
                    place = view.places[cut.axis]
                    if place is not None:
                        size = prod(view.inner[place + 1 :])
                        pieces[name] = Piece(cut.start * size, cut.end * size, prod(view.inner[:place]))
    return pieces
