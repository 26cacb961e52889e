"""Tell the linear layers inside a sublayer apart by what happens to their outputs.

Attention multiplies queries with keys and, behind a softmax, the probabilities with values (Vaswani et al. 2017,
§3.2.1); without a softmax it multiplies keys with values first and queries with the result (Katharopoulos et al. 2020,
§3.2). In an ffn with two branches the gate is the one that goes through the activation (Shazeer 2020, §2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field

from adapter_export.sites.index import FlowIndex
from adapter_export.sites.layer import layer_of
from adapter_export.sites.pieces import pieces_of
from adapter_export.sites.reach import Reach, bends, reach, turns
from adapter_export.sites.view import FlowNode

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
