"""The residual streams of a base by their names: one that has none, or an encoder and a decoder that attends to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile

from adapter_export.errors import NoSitesError
from adapter_export.sites.index import FlowIndex, is_stream
from adapter_export.sites.site import Role
from adapter_export.sites.view import FlowNode

# What a sublayer does, by the products on its way.

_ATTENTIONS: frozenset[Role] = frozenset({"attention", "cross_attention"})


def role_of(index: FlowIndex, x: str, h: str) -> Role:
    """The role of the sublayer that computes `h` from `x`.

    In cross-attention keys and values come from elsewhere (Vaswani et al. 2017, §3.2.3): each product of activations
    has one factor that is computed from `x`, the queries or what they lead to, and others that are not.
    """
    if not index.ancestry.is_mixed(x, h):
        return "ffn"
    mixing = [node for node in (index.nodes[at] for at in index.between(x, h)) if node.mixes_tokens]
    return "cross_attention" if all(_reads_elsewhere(index, node, x) for node in mixing) else "attention"


def _reads_elsewhere(index: FlowIndex, node: FlowNode, x: str) -> bool:
    """Whether one operand of a product is computed from `x`, and the others are not."""
    return len(node.operands) > 1 and sum(index.ancestry.depends(value, on=x) for value in node.operands) == 1


def layers_of(roles: Iterable[Role]) -> Iterator[int]:
    """The number of the layer of each sublayer of a stream, in order.

    A new layer begins at each attention, and at an ffn whose layer has one already; attention and cross-attention that
    follow each other are of one layer.
    """
    layer, taken = 0, set[Role]()
    for role in roles:
        if taken and ("ffn" in taken or role in taken or (role in _ATTENTIONS and not taken <= _ATTENTIONS)):
            layer, taken = layer + 1, set()
        taken.add(role)
        yield layer


# Find the residual streams of a base: chains of sums of a value with something computed from it.


@dataclass(frozen=True)
class Residual:
    """A sum `x + h`.

    Attributes:
        add: the node.
        x: what `h` is computed from, [batch, tokens, d] or [batch·tokens, d].
        h: the other summand.
        total: the sum.
        previous: the sum before it on the stream.
        length: how many sums the stream has up to here.
    """

    add: FlowNode
    x: str
    h: str
    total: str
    previous: Residual | None
    length: int


def residual_streams(index: FlowIndex) -> list[list[Residual]]:
    """The sums of each residual stream, in order; none if there is no such sum.

    A stream in stages has a chain of sums per stage, each computed from the one before; they are put together.
    """
    chains: list[list[Residual]] = []
    for chain in _chains(_residuals(index)):
        if not chains or (len(chain) > 1 and not _is_inside(index, chain, [sum_ for one in chains for sum_ in one])):
            chains.append(chain)
    chains.sort(key=lambda chain: index.position(chain[0].total))
    streams: list[list[Residual]] = []
    for chain in chains:
        before = [stream for stream in streams if index.ancestry.depends(chain[0].x, on=stream[-1].total)]
        if before:
            before[-1].extend(chain)
        else:
            streams.append(chain)
    return [_without_position_convolutions(index, stream) for stream in streams]


def _residuals(index: FlowIndex) -> list[Residual]:
    found: dict[str, Residual] = {}
    totals = 0
    for node in index.nodes:
        residual = _residual(index, node, found, totals)
        if residual is not None:
            found[residual.total] = residual
            totals |= index.ancestry.bit(residual.total)
    return list(found.values())


def _residual(index: FlowIndex, add: FlowNode, found: dict[str, Residual], totals: int) -> Residual | None:
    """The node as a residual sum, if it is one; `totals` has the bits of the sums `found` so far."""
    if add.kind != "add" or not all(is_stream(index.flow, value) for value in (*add.inputs, *add.outputs)):
        return None
    one, other = add.inputs
    for side, h in ((one, other), (other, one)):
        x = _origin(index, side, h, found)
        if x is not None and _features_come_last(index, x, h):
            previous = _previous(index, side, x, found, totals)
            return Residual(add, x, h, add.outputs[0], previous, 1 + (previous.length if previous else 0))
    return None


def _origin(index: FlowIndex, side: str, h: str, found: dict[str, Residual]) -> str | None:
    """The value that `h` is computed from through weights and `side` without: `side` itself, or what it scales.

    In `(x + a) + b` with `a` and `b` both computed from `x`, `side` is the inner sum and `x` is what is looked for.
    """
    if _is_inner_sum(index, side, h, found):
        return found[side].x
    x = index.ancestry.latest(index.ancestry.of(side).unmultiplied & index.ancestry.of(h).weighted)
    return x if x is not None and index.flow.alike(x, h) else None


def _is_inner_sum(index: FlowIndex, side: str, h: str, found: dict[str, Residual]) -> bool:
    """Whether `side` is a sum that `h` does not read, though it is computed from the same `x`."""
    inner = found.get(side)
    return inner is not None and index.ancestry.is_weighted(inner.x, h) and not index.ancestry.depends(h, on=side)


def _previous(index: FlowIndex, side: str, x: str, found: dict[str, Residual], totals: int) -> Residual | None:
    """The sum before: the one that is added to, or the last one that `x` follows without a product between."""
    if side in found and found[side].x == x:
        return found[side]
    before = index.ancestry.latest(index.ancestry.of(x).unmultiplied & totals)
    return None if before is None else found[before]


def _features_come_last(index: FlowIndex, x: str, h: str) -> bool:
    """Whether the last axis is that of the features; convolutions alone leave them on the second."""
    kinds = {index.nodes[at].kind for at in index.between(x, h)}
    return not kinds.isdisjoint({"product", "attention", "layout"})


def _chains(residuals: Iterable[Residual]) -> list[list[Residual]]:
    """The chains that the sums form, the longest first, of equals the last; each sum is in one of them."""
    by_length = sorted(residuals, key=lambda residual: residual.length)
    taken: set[str] = set()
    chains = []
    while by_length:
        chain = list(_back(by_length.pop(), taken))[::-1]
        if chain:
            chains.append(chain)
            taken.update(residual.total for residual in chain)
    return sorted(chains, key=len, reverse=True)


def _back(last: Residual | None, taken: set[str]) -> Iterator[Residual]:
    while last is not None and last.total not in taken:
        yield last
        last = last.previous


def _is_inside(index: FlowIndex, chain: list[Residual], main: Iterable[Residual]) -> bool:
    """Whether the chain lies within one sublayer of another, as those of adapters do that a base has built in."""
    first, last = chain[0], chain[-1]
    depends = index.ancestry.depends
    return any(depends(first.x, on=outer.x) and depends(outer.h, on=last.total) for outer in main)


def _without_position_convolutions(index: FlowIndex, stream: list[Residual]) -> list[Residual]:
    """The stream from its first sublayer on.

    A convolution before all of them is a position embedding (Baevski et al. 2020, §2), not a sublayer.
    """
    return list(dropwhile(lambda residual: _convolves(index, residual), stream)) or stream


def _convolves(index: FlowIndex, residual: Residual) -> bool:
    products = [index.nodes[at] for at in index.between(residual.x, residual.h) if index.nodes[at].multiplies]
    return all(node.kind == "convolution" for node in products)


@dataclass(frozen=True)
class Stream:
    """A residual stream.

    Attributes:
        prefix: what the names of its sites begin with; empty where a base has one stream.
        sums: its sums, in order.
    """

    prefix: str
    sums: tuple[Residual, ...]


def named_streams(index: FlowIndex) -> list[Stream]:
    """The streams of a base, the one that gives the result last; none if there is no residual sum.

    Raises:
        NoSitesError: there are several that are no encoder and decoder.
    """
    found = residual_streams(index)
    if len(found) < 2:
        return [Stream("", tuple(sums)) for sums in found]
    if len(found) == 2:
        for encoder, decoder in (found, found[::-1]):
            if _attends(index, decoder, encoder) and not index.ancestry.depends(encoder[-1].total, on=decoder[0].x):
                return [Stream("encoder.", tuple(encoder)), Stream("decoder.", tuple(decoder))]
    raise _several_streams([len(sums) for sums in found])


def _attends(index: FlowIndex, decoder: Sequence[Residual], encoder: Sequence[Residual]) -> bool:
    """Whether a sublayer of one stream takes keys and values from the end of the other."""
    reading = [sum_ for sum_ in decoder if index.ancestry.depends(sum_.h, on=encoder[-1].total)]
    return any(role_of(index, sum_.x, sum_.h) == "cross_attention" for sum_ in reading)


def _several_streams(lengths: list[int]) -> NoSitesError:
    return NoSitesError(
        "this base has several residual streams, and a site's name says nothing about which one it is in",
        found=f"{len(lengths)} streams, of {', '.join(map(str, lengths))} sublayers",
        expected="one stream, or an encoder and a decoder that attends to its end",
        fix="capture the part that the adapters are for, such as the encoder, as a base of its own",
    )
