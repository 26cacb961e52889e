"""Linear layers of a base as sites; inside sublayers, their role is determined by the use of their outputs.

Attention multiplies queries with keys and, after a softmax, the probabilities with values (Vaswani et al. 2017,
§3.2.1); without a softmax it multiplies keys with values first and queries with the result (Katharopoulos et al. 2020,
§3.2). In an ffn with two branches, the gate is the one with the activation (Shazeer 2020, §2). Layers outside of
sublayers, such as poolers and language heads, are named by module path.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain, count
from typing import NamedTuple

from adapter_export.sites.site import SUBLAYERS, Site
from adapter_export.sites.streams import source_of
from adapter_export.sites.view import FlowIndex, FlowNode, Piece, is_stream, pieces_of

PACKED = ("query", "key", "value")
"""Roles in a packed input of a fused attention, in order."""

_OPERANDS = {1: (PACKED,), 2: (("query",), ("key", "value")), 3: (("query",), ("key",), ("value",))}
"""Roles of a fused attention's inputs, by number of operands."""

_JOINED: Mapping[frozenset[str], str] = {
    frozenset({"query", "key", "value"}): "qkv",
    frozenset({"query", "key"}): "qk",
    frozenset({"key", "value"}): "kv",
    frozenset({"gate", "up"}): "gate_up",
}
"""Names of fused layers."""

_KEPT = frozenset({"query", "key", "value", "output", "gate", "up", "down", *_JOINED.values()})
"""Names by function; a layer never gets one of them only from its module name."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

SITE_PATH = re.compile(r"(?!(head|shared)(\.|$))[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""Module paths valid as site names; `head` and `shared` are reserved prefixes of adapter tensors."""

_SWAPS = frozenset({"transpose", "permute", "t", "mt", "movedim", "swapaxes"})
"""Operations that permute axes."""

_ORDERING = frozenset({"topk", "sort", "argsort", "argmax"})
"""Operations that sort."""


def is_sequence_first(index: FlowIndex, value: str, streams: Iterable[str]) -> bool:
    """Return whether `value` has tokens before batch, as in `torch.nn.MultiheadAttention`.

    `streams` are values of residual streams, with the axis order of requests.
    """
    source = index.producer(value)
    before = () if source is None or not source.inputs else index.flow.shapes.get(source.inputs[0], ())
    shape = index.flow.shapes.get(value, ())
    if len(shape) == 3 and source is not None and source.order == (1, 0, 2):
        return True
    leading = shape[:2] if len(shape) == 3 else before[:2] if len(before) > len(shape) else ()
    if len(leading) != 2 or None in leading or leading[0] == leading[1]:
        return False
    return any(leading == index.flow.shapes.get(stream, ())[1::-1] for stream in streams)


@dataclass(frozen=True)
class Reach:
    """Values and nodes, in order, that a value is computed from, up to the next products."""

    values: frozenset[str]
    nodes: tuple[FlowNode, ...]
    products: dict[str, FlowNode]

    def since(self, product: FlowNode) -> list[FlowNode]:
        """Return the nodes on paths from one of the products."""
        derived, nodes_since = set(product.outputs), []
        for node in self.nodes:
            if not derived.isdisjoint(node.inputs):
                derived.update(node.outputs)
                nodes_since.append(node)
        return nodes_since


def reach(index: FlowIndex, value: str, ends: Set[str]) -> Reach:
    """Walk back from a value along all paths to the next products or values in `ends`."""
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


class Layer(NamedTuple):
    """A linear layer: its product, its input and its output with bias, both [batch, tokens, …] or [batch·tokens, …]."""

    product: FlowNode
    u: str
    h: str


def layer_of(index: FlowIndex, product: FlowNode) -> Layer | None:
    """Return the layer around a product with one trained matrix, or `None` if adapters cannot act there.

    An integer layer starts before quantisation and ends after rescaling; a layer with flattened tokens includes the
    reshapes.
    """
    u, h = product.operands[0], _written(index, product)
    while u not in index.flow.shapes:  # integer values have no shape in a view
        node = index.producer(u)
        if node is None or not node.inputs:
            return None
        u = node.inputs[0]
    if not is_stream(index.flow, u) or not is_stream(index.flow, h):
        return None
    return Layer(product, *(_restored(index, u, h) or (u, h)))


def _written(index: FlowIndex, product: FlowNode) -> str:
    """Return the product after rescaling and bias, if each is its only consumer, and the bias is of the same module."""
    node, value = product, product.outputs[0]
    while node.epilogue != "bias":
        readers = index.readers(value)
        if len(readers) != 1 or value in index.flow.outputs:
            break
        node = readers[0]
        # quantisers drop the path of a product that they replace, and keep that of its bias
        same_module = None in (node.path, product.path) or node.path == product.path
        if node.epilogue is None or node.multiplies or not same_module:
            break
        value = node.outputs[0]
    return value


def _restored(index: FlowIndex, u: str, h: str) -> tuple[str, str] | None:
    """Return input and output with separate batch and tokens, if they are flattened only in between."""
    flow, source, readers = index.flow, index.producer(u), index.readers(h)
    if source is None or len(readers) != 1 or h in flow.outputs or (flow.rank(u), flow.rank(h)) != (2, 2):
        return None
    if source.kind != "layout" or readers[0].kind != "layout":
        return None
    before, after = source.inputs[0], readers[0].outputs[0]
    if (flow.rank(before), flow.rank(after)) != (3, 3):
        return None
    same_widths = flow.width(before) == flow.width(u) and flow.width(after) == flow.width(h)
    return (before, after) if same_widths else None


class Use(NamedTuple):
    """Use of a linear layer in a sublayer: a role such as `query`, with the values that determine it.

    A fused layer has several.
    """

    role: str
    product: FlowNode
    values: Set[str] = frozenset()


def attention_uses(index: FlowIndex, nodes: Sequence[FlowNode], h: str, ends: Set[str]) -> Iterator[Use]:
    """Find queries, keys, values and the output projection among the `nodes` that compute the sublayer's output `h`."""
    mixing = {node.name: node for node in nodes if node.mixes_tokens}
    for role, value in _operands(index, mixing, ends):
        reached = reach(index, value, ends)
        yield from (Use(role, product, reached.values) for product in reached.products.values() if product.linear)
    ways = [(node, reach(index, node.operands[0], ends)) for node in _last(index, nodes, h)]
    last = [node for node, way in ways if way.products.keys() & mixing.keys()]
    if len(last) == 1:
        yield Use("output", last[0])


def _operands(index: FlowIndex, mixing: dict[str, FlowNode], ends: Set[str]) -> Iterator[tuple[str, str]]:
    """Yield roles and values of the operands of attention's products."""
    for node in mixing.values():
        if node.kind == "attention":
            for roles, value in zip(_OPERANDS.get(len(node.operands), ()), node.operands, strict=False):
                yield from ((role, value) for role in roles)
        elif len(node.operands) == 2:
            yield from _pair(node, [reach(index, value, ends) for value in node.operands], mixing)


def _pair(second: FlowNode, reaches: Sequence[Reach], mixing: dict[str, FlowNode]) -> Iterator[tuple[str, str]]:
    """Yield the operands of two successive products."""
    (first_operand, second_operand), (behind_one, behind_other) = second.operands, reaches
    first_of_one, first_of_other = (each.products.keys() & mixing.keys() for each in reaches)
    if bool(first_of_one) == bool(first_of_other):
        return
    mixed, alone = (behind_one, second_operand) if first_of_one else (behind_other, first_operand)
    for first in (mixing[name] for name in first_of_one or first_of_other):
        way = mixed.since(first)
        has_softmax = any(node.kind == "activation" for node in way)
        roles = ("query", "key", "value") if has_softmax else ("key", "value", "query")
        # rows and columns stay in order, and with them queries and keys
        if all(node.op.lower() not in _SWAPS for node in way):
            yield from zip(roles, (*first.operands, alone), strict=False)


def ffn_uses(index: FlowIndex, nodes: Sequence[FlowNode], h: str, ends: Set[str]) -> Iterator[Use]:
    """Find up, gate and down among the `nodes` that compute the sublayer's output `h`."""
    first = {node.name for node in nodes if node.linear and not reach(index, node.operands[0], ends).products}
    ways = [(node, reach(index, node.operands[0], ends)) for node in _last(index, nodes, h)]
    last = [(node, way) for node, way in ways if way.products and way.products.keys() <= first]
    if len(last) == 1:
        ((node, way),) = last
        yield Use("down", node)
        yield from _branches(index, way)


def _branches(index: FlowIndex, way: Reach) -> Iterator[Use]:
    """Yield the use of each layer before the last one: one branch, or two, one of them with an activation."""
    values = [(node, node.outputs[0]) for node in way.products.values()]
    if len(values) == 1:
        (node, value), layer = values[0], layer_of(index, values[0][0])
        cuts = [] if layer is None else [piece for piece in pieces_of(index, layer.h) if piece in way.values]
        if len(cuts) != 2:
            yield Use("up", node, {value})
            return
        values = [(node, piece) for piece in cuts]
    if len(values) == 2:
        read = [name for node in way.nodes if node.kind == "activation" for name in node.inputs]
        # whether an activation on the path depends on one value and not on the other
        depends = index.ancestry.depends
        bent = [
            any(depends(name, on=value) and not depends(name, on=other) for name in read)
            for (_, value), (_, other) in (values, values[::-1])
        ]
        if bent[0] != bent[1]:
            roles = ("gate", "up") if bent[0] else ("up", "gate")
            yield from (Use(role, node, {value}) for role, (node, value) in zip(roles, values, strict=True))


def _last(index: FlowIndex, nodes: Iterable[FlowNode], h: str) -> list[FlowNode]:
    """Return the linear layers that no product follows."""
    unmultiplied = index.ancestry.of(h).unmultiplied
    return [node for node in nodes if node.linear and unmultiplied & index.ancestry.bit(node.outputs[0])]


def _routes(index: FlowIndex, product: FlowNode) -> bool:
    """Return whether a layer's output is sorted: it is a router of experts, not a site."""
    waiting, seen = [*product.outputs], set(product.outputs)
    while waiting:
        for node in index.readers(waiting.pop()):
            if node.op.lower() in _ORDERING:
                return True
            if not node.multiplies and node.kind != "add":
                waiting += [name for name in node.outputs if name not in seen]
                seen.update(node.outputs)
    return False


def linear_sites(index: FlowIndex, sublayer: Site, ends: Collection[str], source: str) -> Iterator[Site]:
    """Yield the linear layers of a sublayer, in order of evaluation.

    `ends` are the values of the residual stream, `source` the one that the sublayer is computed from.
    """
    nodes = [index.nodes[at] for at in index.between(source, sublayer.h)]
    find = ffn_uses if sublayer.role == "ffn" else attention_uses
    uses = list(find(index, nodes, sublayer.h, frozenset(ends)))
    candidates = (*(node for node in nodes if node.linear), *(use.product for use in uses))
    products = {node.name: node for node in candidates if not _routes(index, node)}
    layers = [layer for product in products.values() if (layer := layer_of(index, product)) is not None]
    layers.sort(key=lambda layer: index.position(layer.h))
    for layer, name in zip(layers, _names(layers, uses), strict=True):
        parts = _parts(index, layer, uses)
        yield Site(
            name=f"{sublayer.name}.{name}",
            role="linear",
            layer=sublayer.layer,
            width=index.flow.width(layer.h) or 0,
            width_in=index.flow.width(layer.u) or 0,
            h=layer.h,
            u=layer.u,
            path=layer.product.path,
            parts={role: (piece.start, piece.end) for role, piece in parts.items()},
            blocks=max((piece.blocks for piece in parts.values()), default=1),
            sequence_first=is_sequence_first(index, layer.u, [source]),
        )


def outside_sites(index: FlowIndex, sites: Sequence[Site]) -> Iterator[Site]:
    """Yield the linear layers outside of sublayers, in order of evaluation, with unique names.

    `sites` are all other sites. Excludes routers, and layers that no output depends on.
    """
    placed = {site.h for site in sites if site.role == "linear"}
    starts = {site.h: site.x for site in sites if site.role in SUBLAYERS and site.x is not None}
    for h, x in starts.items():
        inside = index.between(source_of(index, x, h) or x, h)
        placed |= {value for at in inside for value in index.nodes[at].outputs}
    candidates = [node for node in index.nodes if node.linear and not _routes(index, node)]
    layers = [layer for node in candidates if (layer := layer_of(index, node)) is not None and layer.h not in placed]
    layers.sort(key=lambda layer: index.position(layer.h))
    times = Counter(layer.product.path for layer in layers)
    names_taken = {site.name for site in sites}
    for layer in layers:
        path = layer.product.path
        named = [] if path is None or times[path] > 1 else [path, f"outside.{path}"]
        names = chain(named, (f"outside.linear{number}" for number in count()))
        name = next(name for name in names if SITE_PATH.fullmatch(name) and name not in names_taken)
        names_taken.add(name)
        yield Site(
            name=name,
            role="linear",
            layer=None,
            width=index.flow.width(layer.h) or 0,
            width_in=index.flow.width(layer.u) or 0,
            h=layer.h,
            u=layer.u,
            path=path,
            sequence_first=is_sequence_first(index, layer.u, starts.values()),
        )


def _parts(index: FlowIndex, layer: Layer, uses: Sequence[Use]) -> dict[str, Piece]:
    """Return the splits of a fused layer's output; empty unless each is contiguous."""
    sources = {
        role: {value for use in uses if use.role == role for value in use.values}
        for role in {use.role for use in uses if use.product is layer.product}
    }
    if len(sources) < 2:
        return {}
    pieces = pieces_of(index, layer.h)
    pieces_by_role = {role: [pieces[name] for name in pieces if name in values] for role, values in sources.items()}
    for node in index.readers(layer.h):
        for role, (start, end) in zip(PACKED, node.packed, strict=False):
            pieces_by_role.setdefault(role, []).append(Piece(start, end))
    several = any(len(set(places)) != 1 for places in pieces_by_role.values())
    if several or len({places[0].blocks for places in pieces_by_role.values()}) > 1:
        return {}
    return dict(sorted(((role, places[0]) for role, places in pieces_by_role.items()), key=lambda part: part[1]))


def _names(layers: Sequence[Layer], uses: Sequence[Use]) -> list[str]:
    """Return a name for each layer: by use, or else module name, or else number."""
    roles = [{use.role for use in uses if use.product is layer.product} for layer in layers]
    names = [next(iter(does)) if len(does) == 1 else _JOINED.get(frozenset(does)) for does in roles]
    unique = {name for name, times in Counter(names).items() if times == 1}
    modules = [(layer.product.path or "").rpartition(".")[2] for layer in layers]
    others = [name if _NAME.fullmatch(name) and name not in _KEPT else None for name in modules]
    counts = Counter(other for name, other in zip(names, others, strict=True) if name not in unique)
    numbers = count()
    names_found = []
    for name, other in zip(names, others, strict=True):
        by_use = name if name in unique else None
        by_module = other if counts[other] == 1 else None
        names_found.append(by_use or by_module or f"linear{next(numbers)}")
    return names_found
