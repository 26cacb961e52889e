"""The linear layers inside the sublayers of a base, as sites."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from adapter_export.sites.index import FlowIndex, Piece, is_stream, pieces_of
from adapter_export.sites.site import Site
from adapter_export.sites.view import FlowNode

# Whether a layer reads tokens before batch.

_BATCH_SECOND = (1, 0, 2)
_ROWS, _APART = 2, 3
"""The axes of a value with the tokens of all texts in one row, and of one that has batch and tokens apart."""


def is_sequence_first(index: FlowIndex, value: str, streams: Iterable[str]) -> bool:
    """Whether tokens come before batch in what a linear layer reads, as `torch.nn.MultiheadAttention` has them.

    Args:
        index: the graph of the base.
        value: what the layer reads, [batch, tokens, d_in] or [batch·tokens, d_in] otherwise.
        streams: values of residual streams of the base, whose axes are those of a request.
    """
    source = index.producer(value)
    before = () if source is None or not source.inputs else index.flow.shapes.get(source.inputs[0], ())
    shape = index.flow.shapes.get(value, ())
    if len(shape) == _APART and source is not None and source.order == _BATCH_SECOND:
        return True
    leading = shape[:_ROWS] if len(shape) == _APART else before[:_ROWS] if len(before) > len(shape) else ()
    if len(leading) != _ROWS or None in leading or leading[0] == leading[1]:
        return False
    return any(leading == index.flow.shapes.get(stream, ())[1::-1] for stream in streams)


# Walk back from a value to the products that it is computed from.

_TURNS = frozenset({"transpose", "permute", "t", "mt", "movedim", "swapaxes"})


@dataclass(frozen=True)
class Reach:
    """What a value is computed from, up to the next products behind it.

    Attributes:
        values: the values on the way, the outputs of the products among them.
        nodes: the nodes on the way, in the order of evaluation.
        products: the products at its end, by name.
    """

    values: frozenset[str]
    nodes: tuple[FlowNode, ...]
    products: dict[str, FlowNode]

    def since(self, product: FlowNode) -> list[FlowNode]:
        """The nodes on the way from one of the products."""
        derived, found = set(product.outputs), []
        for node in self.nodes:
            if not derived.isdisjoint(node.inputs):
                derived.update(node.outputs)
                found.append(node)
        return found


def bends(nodes: Iterable[FlowNode]) -> bool:
    """Whether an activation is among them."""
    return any(node.kind == "activation" for node in nodes)


def turns(nodes: Iterable[FlowNode]) -> bool:
    """Whether one of them lets axes change places."""
    return any(node.op.lower() in _TURNS for node in nodes)


def reach(index: FlowIndex, value: str, ends: Set[str]) -> Reach:
    """Walk back from a value, over every way, to the next product or to one of the values `ends`."""
    values: set[str] = set()
    nodes: dict[str, FlowNode] = {}
    products: dict[str, FlowNode] = {}
    waiting = [value]
    while waiting:
        name = waiting.pop()
        node = index.producer(name)
        if name in values or name in ends or node is None:
            continue
        values.add(name)
        (products if node.multiplies else nodes)[node.name] = node
        waiting.extend(() if node.multiplies else node.inputs)
    ordered = sorted(nodes.values(), key=lambda node: index.position(node.outputs[0]))
    return Reach(frozenset(values), tuple(ordered), products)


# A linear layer: what it reads, and its output with its bias.


@dataclass(frozen=True)
class Layer:
    """A linear layer.

    Attributes:
        product: the node that multiplies.
        u: its input, [batch, tokens, d_in] or [batch·tokens, d_in].
        h: its output with its bias, likewise.
    """

    product: FlowNode
    u: str
    h: str


def layer_of(index: FlowIndex, product: FlowNode) -> Layer | None:
    """The layer around a product with one trained matrix; none if adapters cannot act there.

    A layer of integers begins with what is quantised, and ends with what is scaled back. Where the tokens are put in
    one row for the product alone, it is what lies outside of that.
    """
    u, h = _read(index, product), _written(index, product)
    if u is None or not is_stream(index.flow, u) or not is_stream(index.flow, h):
        return None
    return Layer(product, *(_restored(index, u, h) or (u, h)))


def _read(index: FlowIndex, product: FlowNode) -> str | None:
    """What is multiplied; before it is quantised, as values of integers have no shape in a view."""
    value = product.operands[0]
    while value not in index.flow.shapes:
        node = index.producer(value)
        if node is None or not node.inputs:
            return None
        value = node.inputs[0]
    return value


def _written(index: FlowIndex, product: FlowNode) -> str:
    """The product, scaled back and with its bias; both stand behind it alone, and a bias belongs to the same module."""
    node, value = product, product.outputs[0]
    while node.epilogue != "bias":
        readers = index.readers(value)
        if len(readers) != 1 or value in index.flow.outputs or not _is_epilogue(readers[0], product):
            break
        node, value = readers[0], readers[0].outputs[0]
    return value


def _is_epilogue(node: FlowNode, product: FlowNode) -> bool:
    """Quantisers drop the path of a product that they replace, and keep that of its bias."""
    same_module = None in (node.path, product.path) or node.path == product.path
    return node.epilogue is not None and not node.multiplies and same_module


def _restored(index: FlowIndex, u: str, h: str) -> tuple[str, str] | None:
    """Both with batch and tokens apart, where they are only put together in between."""
    flow, source, readers = index.flow, index.producer(u), index.readers(h)
    if source is None or len(readers) != 1 or h in flow.outputs or (flow.rank(u), flow.rank(h)) != (2, 2):
        return None
    if source.kind != "layout" or readers[0].kind != "layout":
        return None
    before, after = source.inputs[0], readers[0].outputs[0]
    if (flow.rank(before), flow.rank(after)) != (3, 3):
        return None
    kept = flow.width(before) == flow.width(u) and flow.width(after) == flow.width(h)
    return (before, after) if kept else None


# Tell the linear layers inside a sublayer apart by what happens to their outputs.
#
# Attention multiplies queries with keys and, behind a softmax, the probabilities with values (Vaswani et al. 2017,
# §3.2.1); without a softmax it multiplies keys with values first and queries with the result (Katharopoulos et al.
# 2020,
# §3.2). In an ffn with two branches the gate is the one that goes through the activation (Shazeer 2020, §2).

PACKED = ("query", "key", "value")
"""What a fused attention reads in one value, in this order."""

_OPERANDS = {1: (PACKED,), 2: (("query",), ("key", "value")), 3: (("query",), ("key",), ("value",))}
"""What a fused attention reads, by the number of its operands."""


@dataclass
class Wiring:
    """What the linear layers of one sublayer are for.

    Attributes:
        layers: the products of those that have a name of their own, by node.
        roles: what each of them computes, such as `query`; several in a fused one.
        sources: the values that each role is read from, on the way from its layer to where it is used.
    """

    layers: dict[str, FlowNode] = field(default_factory=dict)
    roles: dict[str, set[str]] = field(default_factory=dict)
    sources: dict[str, set[str]] = field(default_factory=dict)

    def add(self, role: str, product: FlowNode, values: Iterable[str] = ()) -> None:
        """Note that a layer computes what has a role."""
        self.layers[product.name] = product
        self.roles.setdefault(product.name, set()).add(role)
        self.sources.setdefault(role, set()).update(values)


def attention_wiring(index: FlowIndex, nodes: Sequence[FlowNode], h: str, ends: Set[str]) -> Wiring:
    """Find queries, keys, values and the output projection among the `nodes` that compute the sublayer's output `h`."""
    wiring = Wiring()
    mixing = {node.name: node for node in nodes if node.mixes_tokens}
    for role, value in _operands(index, mixing, ends):
        found = reach(index, value, ends)
        for product in found.products.values():
            if product.linear:
                wiring.add(role, product, found.values)
    last = [node for node in _last(index, nodes, h) if _behind(index, node, ends).products.keys() & mixing.keys()]
    if len(last) == 1:
        wiring.add("output", last[0])
    return wiring


def _operands(index: FlowIndex, mixing: dict[str, FlowNode], ends: Set[str]) -> Iterator[tuple[str, str]]:
    """The roles, and the values that have them where attention multiplies."""
    for node in mixing.values():
        if node.kind == "attention":
            for roles, value in zip(_OPERANDS.get(len(node.operands), ()), node.operands, strict=False):
                yield from ((role, value) for role in roles)
        elif len(node.operands) == 2:
            yield from _pair(node, [reach(index, value, ends) for value in node.operands], mixing)


def _pair(second: FlowNode, found: Sequence[Reach], mixing: dict[str, FlowNode]) -> Iterator[tuple[str, str]]:
    """The operands of a product and of the one that it multiplies the result of."""
    (one, other), (behind_one, behind_other) = second.operands, found
    first_of_one, first_of_other = (each.products.keys() & mixing.keys() for each in found)
    if bool(first_of_one) == bool(first_of_other):
        return
    mixed, alone = (behind_one, other) if first_of_one else (behind_other, one)
    for first in (mixing[name] for name in first_of_one or first_of_other):
        way = mixed.since(first)
        roles = ("query", "key", "value") if bends(way) else ("key", "value", "query")
        if not turns(way):  # rows and columns keep their places, and with them queries and keys
            yield from zip(roles, (*first.operands, alone), strict=False)


def ffn_wiring(index: FlowIndex, nodes: Sequence[FlowNode], h: str, ends: Set[str]) -> Wiring:
    """Find up, gate and down among the `nodes` that compute the sublayer's output `h`."""
    wiring = Wiring()
    first = {node.name for node in nodes if node.linear and not _behind(index, node, ends).products}
    ways = {node.name: _behind(index, node, ends) for node in _last(index, nodes, h)}
    last = [name for name, way in ways.items() if way.products and way.products.keys() <= first]
    if len(last) == 1:
        way = ways[last[0]]
        wiring.add("down", next(node for node in nodes if node.name == last[0]))
        for role, product, value in _branches(index, way):
            wiring.add(role, product, [value])
    return wiring


def _branches(index: FlowIndex, way: Reach) -> Iterator[tuple[str, FlowNode, str]]:
    """What each layer before the last one is: one branch, or two of which one goes through an activation."""
    values = [(node, node.outputs[0]) for node in way.products.values()]
    if len(values) == 1:
        (node, value), layer = values[0], layer_of(index, values[0][0])
        cuts = [] if layer is None else [piece for piece in pieces_of(index, layer.h) if piece in way.values]
        if len(cuts) != 2:
            yield "up", node, value
            return
        values = [(node, piece) for piece in cuts]
    if len(values) == 2:
        bent = [_bends_alone(index, way, value, other) for (_, value), (_, other) in (values, values[::-1])]
        if bent[0] != bent[1]:
            gate, up = values if bent[0] else values[::-1]
            yield "gate", *gate
            yield "up", *up


def _bends_alone(index: FlowIndex, way: Reach, value: str, other: str) -> bool:
    """Whether an activation on the way reads what is computed from one value and not from the other."""
    depends = index.ancestry.depends
    read = [name for node in way.nodes if node.kind == "activation" for name in node.inputs]
    return any(depends(name, on=value) and not depends(name, on=other) for name in read)


def _last(index: FlowIndex, nodes: Iterable[FlowNode], h: str) -> Iterator[FlowNode]:
    """The linear layers behind which nothing multiplies any more."""
    ancestry = index.ancestry
    unmultiplied = ancestry.of(h).unmultiplied
    yield from (node for node in nodes if node.linear and unmultiplied & ancestry.bit(node.outputs[0]))


def _behind(index: FlowIndex, layer: FlowNode, ends: Set[str]) -> Reach:
    """What the input of a linear layer is computed from."""
    return reach(index, layer.operands[0], ends)


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
        sequence_first=is_sequence_first(index, layer.u, [sublayer.x] if sublayer.x is not None else []),
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
