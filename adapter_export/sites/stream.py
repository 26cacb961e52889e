"""Find the residual stream of a base: a chain of sums of a value with something computed from it."""

from __future__ import annotations

from dataclasses import dataclass

from adapter_export.sites.ancestry import is_stream
from adapter_export.sites.index import FlowIndex
from adapter_export.sites.view import FlowNode


@dataclass(frozen=True)
class Residual:
    """A sum `x + h`.

    Attributes:
        add: the node.
        x: what `h` is computed from, [batch, tokens, d].
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


def residual_stream(index: FlowIndex) -> list[Residual]:
    """The sums of the longest residual stream, in order; none if there is no such sum."""
    found: dict[str, Residual] = {}
    totals = 0
    for node in index.nodes:
        residual = _residual(index, node, found, totals)
        if residual is not None:
            found[residual.total] = residual
            totals |= index.ancestry.bit(residual.total)
    return _chain(max(reversed(found.values()), key=lambda residual: residual.length, default=None))


def _chain(last: Residual | None) -> list[Residual]:
    chain = []
    while last is not None:
        chain.append(last)
        last = last.previous
    return chain[::-1]


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
    if index.flow.width(side) != index.flow.width(h):
        return None
    if _is_inner_sum(index, side, found):
        inner = found[side]
        return inner.x if index.ancestry.is_weighted(inner.x, h) else None
    x = index.ancestry.latest(index.ancestry.of(side).unmultiplied & index.ancestry.of(h).weighted)
    return x if x is not None and index.flow.width(x) == index.flow.width(h) else None


def _is_inner_sum(index: FlowIndex, value: str, found: dict[str, Residual]) -> bool:
    return value in found and index.read_once(value)


def _previous(index: FlowIndex, side: str, x: str, found: dict[str, Residual], totals: int) -> Residual | None:
    """The sum before: the one that is added to, or the last one that `x` follows without a product between."""
    if _is_inner_sum(index, side, found):
        return found[side]
    before = index.ancestry.latest(index.ancestry.of(x).unmultiplied & totals)
    return None if before is None else found[before]


def _features_come_last(index: FlowIndex, x: str, h: str) -> bool:
    """Whether the last axis is that of the features; convolutions alone leave them on the second."""
    kinds = {index.nodes[at].kind for at in index.between(x, h)}
    return not kinds.isdisjoint({"product", "attention", "layout"})
