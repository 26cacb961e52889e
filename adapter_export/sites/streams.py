"""Residual streams of a base: chains of sums of a value and a result computed from it.

A base has one stream, without a name, or an encoder and a decoder that attends to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import dropwhile

from adapter_export.errors import NoSitesError
from adapter_export.sites.site import Role
from adapter_export.sites.view import FlowIndex, FlowNode, is_stream
from adapter_export.tables import number_of

_ATTENTIONS: frozenset[Role] = frozenset({"attention", "cross_attention"})


def role_of(index: FlowIndex, x: str, h: str) -> Role:
    """Return the role of the sublayer that computes `h` from `x`.

    In cross-attention, keys and values have another source (Vaswani et al. 2017, §3.2.3): each product of activations
    has one factor computed from `x`, the queries or results of them, and other factors that are not.
    """
    if not index.ancestry.is_mixed(x, h):
        return "ffn"
    for node in (index.nodes[at] for at in index.between(x, h)):
        from_x = sum(index.ancestry.depends(value, on=x) for value in node.operands)
        if node.mixes_tokens and (len(node.operands) < 2 or from_x != 1):
            return "attention"
    return "cross_attention"


def layers_of(roles: Iterable[Role]) -> Iterator[int]:
    """Yield the layer of each sublayer of a stream, in order; successive attention and cross-attention share one.

    A new layer starts at any other attention, and at a second ffn.
    """
    layer, seen = 0, set[Role]()
    for role in roles:
        if seen and ("ffn" in seen or role in seen or (role in _ATTENTIONS and not seen <= _ATTENTIONS)):
            layer, seen = layer + 1, set()
        seen.add(role)
        yield layer


@dataclass(frozen=True)
class Residual:
    """A sum of `x` and `h` with factors, where `h` is computed from `x` [batch, tokens, d] or [batch·tokens, d].

    Attributes:
        add: the node that adds or subtracts `h`.
        total: the sum of all terms.
        source: the value `h` is computed from: `x`, except at the start of a stage, whose `x` is the projected or
            pooled shortcut.
        previous: the previous sum on the stream.
        length: number of sums up to this one.
    """

    add: FlowNode
    x: str
    h: str
    total: str
    source: str
    previous: Residual | None
    length: int


def residual_streams(index: FlowIndex) -> list[list[Residual]]:
    """Return the sums of each residual stream, in order; empty if there is no such sum.

    A stream in stages has a chain of sums per stage, each computed from the previous one; they are joined.
    """
    depends, chains = index.ancestry.depends, list[list[Residual]]()
    for chain in _chains(_residuals(index)):
        first, last = chain[0], chain[-1]
        # chains within a sublayer of another chain are built-in adapters
        inside = any(
            depends(first.source, on=sum_.source) and depends(sum_.h, on=last.total) for sums in chains for sum_ in sums
        )
        if not chains or (len(chain) > 1 and not inside):
            chains.append(chain)
    chains.sort(key=lambda chain: index.position(chain[0].total))
    streams: list[list[Residual]] = []
    for chain in chains:
        before = [stream for stream in streams if depends(chain[0].source, on=stream[-1].total)]
        if before:
            before[-1].extend(chain)
        else:
            streams.append(chain)

    def convolves(residual: Residual) -> bool:
        way = (index.nodes[at] for at in index.between(residual.source, residual.h))
        return all(node.kind == "convolution" for node in way if node.multiplies)

    _check_width(index, streams)
    # convolutions before all sublayers are a position embedding (Baevski et al. 2020, §2)
    return [list(dropwhile(convolves, stream)) or stream for stream in streams]


def _check_width(index: FlowIndex, streams: Iterable[list[Residual]]) -> None:
    """Reject a stream whose last axis is not contracted by products with weights, such as [batch, width, tokens]."""
    for stream in streams:
        verdicts = {verdict for residual in stream for verdict in _contracts_features(index, residual)}
        if verdicts == {False}:
            shape = list(index.flow.shapes[stream[0].x])
            raise NoSitesError(
                "the width of this base is not on the last axis of its residual stream, where adapters act",
                where=f"`{stream[0].x}`",
                found=f"shape {shape}, where weights contract an axis other than the last",
                expected="[batch, tokens, width]",
                fix="write the model with the width last, with `Linear` instead of convolutions over tokens",
            )


def _contracts_features(index: FlowIndex, residual: Residual) -> Iterator[bool]:
    """Yield, for each first product with weights in a sublayer, whether it sums over the features, where known."""
    flow = index.flow
    features = {residual.source: (flow.rank(residual.source) or 0) - 1}
    for node in (index.nodes[at] for at in index.between(residual.source, residual.h)):
        read = next((value for value in (node.operands or node.inputs) if value in features), None)
        if read is None:
            continue
        axis, before, after = features[read], flow.shapes.get(read, ()), flow.shapes.get(node.outputs[0], ())
        if node.multiplies:
            if node.contracts is not None:
                yield axis - len(before) == node.contracts
        elif node.order:
            features |= {node.outputs[0]: node.order.index(axis)} if axis in node.order else {}
        elif len(after) == len(before) and before[axis] == after[axis]:
            features[node.outputs[0]] = axis


def _residuals(index: FlowIndex) -> list[Residual]:
    residuals: dict[str, Residual] = {}
    parts: dict[str, str] = {}  # the complete sum for each sum of two terms
    totals = 0  # the bits of the sums found so far
    ancestry = index.ancestry
    for add in index.nodes:
        if add.kind != "add" or not all(is_stream(index.flow, value) for value in (*add.inputs, *add.outputs)):
            continue
        for side, term in (add.inputs, add.inputs[::-1]):
            start = _start(index, side, term)
            if start is None:
                continue
            (x, source), h, adding = start, term, add
            inner = residuals.get(parts.get(term, ""))
            if inner is not None and ancestry.is_straight(inner.x, side):  # an earlier value of the stream
                h, adding = inner.h, inner.add
                del residuals[inner.total]
            kinds = {index.nodes[at].kind for at in index.between(source, h)}
            if kinds.isdisjoint({"product", "attention", "layout"}):  # convolutions leave the features on axis 1
                continue
            if side in residuals and residuals[side].x == x:
                previous: Residual | None = residuals[side]
            else:
                before = ancestry.latest(ancestry.of(x).straight & totals)
                previous = None if before is None else residuals.get(before)
            total = whole_sum(index, x, add.outputs[0])
            length = 1 + (previous.length if previous else 0)
            parts[add.outputs[0]] = total
            residuals[total] = Residual(adding, x, h, total, source, previous, length)
            totals |= ancestry.bit(total)
            break
    return list(residuals.values())


def _start(index: FlowIndex, side: str, h: str) -> tuple[str, str] | None:
    """Return the `x` of a sum of `side` and `h`, and the source of `h`, or `None` if it is not a residual sum.

    `x` is the last value that `side` contains without a product and that `h` is computed from through weights; `h` must
    not contain it directly, or the sum only mixes values of the stream. If that value has another shape, a stage
    starts, and its `x` is the added value, pooled or projected by weights.
    """
    ancestry, flow = index.ancestry, index.flow
    x = ancestry.latest(ancestry.of(side).straight & ancestry.of(h).weighted & ~ancestry.of(h).straight)
    if x is not None and flow.alike(x, h):
        return x, x
    source = None if ancestry.depends(h, on=side) else source_of(index, side, h)
    return None if source is None else (side, source)


def source_of(index: FlowIndex, x: str, h: str) -> str | None:
    """Return the value that a sublayer computes `h` from: `x`, or at the start of a stage, the origin of `x`.

    There, `x` is pooled or projected from it. A shortcut is projected if weights change its width and only `h` goes
    through attention. Returns `None` otherwise.
    """
    ancestry, flow = index.ancestry, index.flow
    if ancestry.depends(h, on=x) or ancestry.depends(x, on=h):
        return x if ancestry.depends(h, on=x) else None
    first, other = ancestry.of(x), ancestry.of(h)
    sums = [node.inputs for node in index.readers(h) if node.kind == "add"]
    if not flow.alike(x, h) or not any(ancestry.is_straight(x, value) for read in sums for value in read if value != h):
        return None
    pooled = ancestry.latest(first.straight & other.weighted & ~other.straight)
    projected = ancestry.latest(first.weighted & ~first.mixed & other.mixed)
    if pooled is None and projected is not None and flow.width(projected) == flow.width(h):
        return None
    return pooled or projected


def whole_sum(index: FlowIndex, x: str, total: str) -> str:
    """Return the sum that continues a stream: of `x`, `h`, and other terms with `x` or earlier values.

    `x + g·(h - x)` is such a sum, so that its inner difference is not.
    """
    ancestry, value, whole = index.ancestry, total, total
    while len(readers := index.readers(value)) == 1 and value not in index.flow.outputs:
        (node,) = readers
        if node.kind not in ("add", "other") or not index.flow.alike(node.outputs[0], total):
            break
        value, read = node.outputs[0], value
        if node.kind == "add":
            others = [ancestry.of(name) for name in node.inputs if name != read]
            if not all(each.straight & ancestry.of(x).straight & ~ancestry.bit(total) for each in others):
                break
            if any(each.all & ancestry.bit(total) for each in others):
                break
            whole = value
    return whole


def _chains(residuals: Iterable[Residual]) -> list[list[Residual]]:
    """Return the chains of sums, longest first, later ones first among equals; each sum is in one chain."""
    by_length = sorted(residuals, key=lambda residual: residual.length)
    totals: set[str] = set()
    chains = []
    while by_length:
        chain: list[Residual] = []
        last: Residual | None = by_length.pop()
        while last is not None and last.total not in totals:
            chain.append(last)
            totals.add(last.total)
            last = last.previous
        if chain:
            chains.append(chain[::-1])
    return sorted(chains, key=len, reverse=True)


@dataclass(frozen=True)
class Stream:
    """A residual stream, and the prefix of its site names, empty for a single stream."""

    prefix: str
    sums: tuple[Residual, ...]


def named_streams(index: FlowIndex) -> list[Stream]:
    """Return the streams of a base, the one with the result last; empty if there is no residual sum.

    Raises NoSitesError if there are several that are not encoder and decoder.
    """
    streams_found = residual_streams(index)
    if len(streams_found) < 2:
        return [Stream("", tuple(sums)) for sums in streams_found]
    if len(streams_found) == 2:
        for encoder, decoder in (streams_found, streams_found[::-1]):
            end, depends = encoder[-1].total, index.ancestry.depends
            roles = {role_of(index, sum_.source, sum_.h) for sum_ in decoder if depends(sum_.h, on=end)}
            if "cross_attention" in roles and not depends(end, on=decoder[0].x):
                return [Stream("encoder.", tuple(encoder)), Stream("decoder.", tuple(decoder))]
    depends = index.ancestry.depends
    nested = any(
        depends(inner[0].source, on=sum_.source) and depends(sum_.h, on=inner[0].total)
        for outer in streams_found
        for sum_ in outer
        for inner in streams_found
        if inner is not outer
    )
    sizes = [str(len(sums)) for sums in streams_found]
    how = "; one runs inside the sublayers of another" if nested else ""
    raise NoSitesError(
        "this base has several residual streams, which site names cannot distinguish",
        found=f"{number_of(len(sizes), 'stream')}, of {', '.join(sizes)} sublayers{how}",
        expected="one stream, or an encoder and a decoder that attends to its end",
        fix="define the sites in a site map"
        if nested
        else "capture the part for the adapters, such as the encoder, as a separate base",
    )
