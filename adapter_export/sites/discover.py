"""Find the sublayers of a base by the structure of its dataflow.

The residual stream shows as a chain of sums `x + h`: `h` is computed from `x` through trained weights, and the next
`x` is computed from the sum through norms, dropouts and scales alone. Each such `h` is a sublayer. Nothing else counts:
sums of embeddings do not depend on each other, a mask has no weights on its way, a bias is no activation, and a sum
inside a sublayer is not on the chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain

from adapter_export.errors import NoSitesError
from adapter_export.sites.ancestry import is_stream
from adapter_export.sites.calls import with_calls
from adapter_export.sites.follow import block_output, follower_of, maker_of, path_of
from adapter_export.sites.index import FlowIndex
from adapter_export.sites.linear import linear_sites
from adapter_export.sites.roles import layers_of, role_of
from adapter_export.sites.site import Role, Site, SiteMap
from adapter_export.sites.stream import Residual
from adapter_export.sites.streams import Stream, named_streams
from adapter_export.sites.view import FlowGraph, FlowNode


def discover(flow: FlowGraph) -> SiteMap:
    """Find the sites of a base.

    A sublayer is attention if a product of activations with activations lies on its way, else ffn; `role_of` and
    `layers_of` say it in full. In a base of encoder and decoder, names begin with the stream, and the final hidden
    state is the decoder's.

    Raises:
        NoSitesError: it has no residual stream, or several that are no encoder and decoder; the message says what was
            looked at.
    """
    index = FlowIndex(flow)
    streams = named_streams(index)
    if not streams:
        raise _no_sites(flow)
    final = _final(index, streams[-1].sums[-1].total)
    if flow.rank(final) != 3:  # a stream without tokens, such as that of a network for tables
        raise _no_sites(flow)
    sublayers: list[list[Site]] = []
    for stream in streams:
        first = 1 + max((site.layer for sites in sublayers for site in sites if site.layer is not None), default=-1)
        sublayers.append(list(_stream_sites(index, stream, first)))
    ends = stream_values(site for sites in sublayers for site in sites)
    inner = (_with_inner(index, stream, sites, ends) for stream, sites in zip(streams, sublayers, strict=True))
    return SiteMap(tuple(with_calls(index, chain.from_iterable(inner))), final, _width(flow, final))


def _stream_sites(index: FlowIndex, stream: Stream, first: int) -> Iterator[Site]:
    """The sublayers of a stream, whose layers count from `first` on in the base, and from 0 in their names."""
    found = list(_sublayers(index, stream.sums))
    for sublayer, layer in zip(found, layers_of(sublayer.role for sublayer in found), strict=True):
        yield _site(index, sublayer, f"{stream.prefix}layers.{layer}.{sublayer.role}", first + layer)


def _with_inner(index: FlowIndex, stream: Stream, sublayers: Iterable[Site], ends: Set[str]) -> Iterator[Site]:
    """The sites of a stream in the order of evaluation: the embeddings, and each sublayer behind its linear layers."""
    start = stream.sums[0].x
    if index.producer(start) is not None:  # a base may read the stream itself
        yield embeddings_site(index, f"{stream.prefix}embeddings", start)
    for sublayer in sublayers:
        yield from linear_sites(index, sublayer, ends - {sublayer.h})
        yield sublayer


def stream_values(sublayers: Iterable[Site]) -> set[str]:
    """The values at which sublayers begin and end."""
    return {value for site in sublayers for value in (site.x, site.h, site.y) if value is not None}


def embeddings_site(index: FlowIndex, name: str, start: str) -> Site:
    """The site of what the stream starts from."""
    width = _width(index.flow, start)
    return Site(
        name=name,
        role="embeddings",
        layer=None,
        width=width,
        width_in=width,
        h=start,
        x=None,
        u=None,
        y=None,
        norm=None,
        residual=None,
        path=maker_of(index, start),
        followed_by="",
    )


def _final(index: FlowIndex, total: str) -> str:
    """The final hidden state [batch, tokens, d]: the last sum, after the norm where one follows."""
    final = index.last_before_product(total, index.computed_from(total))
    restored = [node.outputs[0] for node in index.readers(final) if node.kind == "layout" and node.inputs == (final,)]
    if index.flow.rank(final) == 2 and len(restored) == 1:  # the tokens of the batch were in one row
        return _final(index, restored[0])
    return final


@dataclass(frozen=True)
class _Sublayer:
    """What computes one `h` from `x`.

    `add` is the node that reads `h`, `total` the sum with the stream, which ends there if the sublayer `is_last`.
    """

    role: Role
    x: str
    h: str
    add: FlowNode
    total: str
    is_last: bool = False


def _sublayers(index: FlowIndex, stream: Sequence[Residual]) -> Iterator[_Sublayer]:
    """The sublayers in order; of those that read the same `x`, attention first."""
    groups: dict[str, list[_Sublayer]] = {}
    for residual in stream:
        groups.setdefault(residual.x, []).extend(_split(index, residual, residual.h, residual.add))
    continued = {residual.previous.total for residual in stream if residual.previous is not None}
    for group in groups.values():
        ordered = sorted(group, key=lambda sublayer: sublayer.role == "ffn")
        total = group[-1].total
        yield from (replace(sublayer, total=total, is_last=total not in continued) for sublayer in ordered)


def _split(index: FlowIndex, residual: Residual, h: str, add: FlowNode) -> Iterator[_Sublayer]:
    """One sublayer, or attention and ffn where `h` is the sum of both (parallel blocks)."""
    inner = index.producer(h)
    if inner is not None and _is_parallel(index, residual.x, inner):
        for part in inner.inputs:
            yield from _split(index, residual, part, inner)
    else:
        yield _Sublayer(role_of(index, residual.x, h), residual.x, h, add, residual.total)


def _is_parallel(index: FlowIndex, x: str, add: FlowNode) -> bool:
    """Whether it adds two sublayers of `x`: of different roles, neither computed from the other."""
    if add.kind != "add" or not all(index.ancestry.is_weighted(x, value) for value in add.inputs):
        return False
    one, other = add.inputs
    nested = index.ancestry.depends(one, on=other) or index.ancestry.depends(other, on=one)
    return not nested and role_of(index, x, one) != role_of(index, x, other)


def _site(index: FlowIndex, sublayer: _Sublayer, name: str, layer: int) -> Site:
    positions = index.between(sublayer.x, sublayer.h)
    u = index.last_before_product(sublayer.x, positions, readers=set(positions))
    y, norm = block_output(index, sublayer.total, ends=sublayer.is_last and u != sublayer.x)
    width = _width(index.flow, sublayer.h)
    return Site(
        name=name,
        role=sublayer.role,
        layer=layer,
        width=width,
        width_in=width,
        h=sublayer.h,
        x=sublayer.x,
        u=u,
        y=y,
        norm=norm,
        residual=sublayer.add.name,
        path=path_of([index.nodes[at] for at in positions]),
        followed_by=follower_of(index, sublayer.total),
    )


def _width(flow: FlowGraph, value: str) -> int:
    width = flow.width(value)
    assert width is not None  # a stream has a known width
    return width


def _no_sites(flow: FlowGraph) -> NoSitesError:
    products = sum(node.multiplies and node.weighted for node in flow.nodes)
    sums = [node.outputs[0] for node in flow.nodes if node.kind == "add"]
    shaped = sum(is_stream(flow, value) and flow.rank(value) == 3 for value in sums)
    return NoSitesError(
        "no residual stream was found in this base, and with it no place for an adapter",
        found=f"{products} products with trained weights and {len(sums)} sums of two activations, {shaped} of them of "
        "shape [batch, tokens, width] with a known width",
        expected="sums `x + h` of that shape, `h` computed from `x` through trained weights, as in every transformer",
        fix="give a base with residual sublayers; if it is a transformer, capture it with a fixed width and with its "
        "layers visible (in torch: `torch.backends.mha.set_fastpath_enabled(False)`)",
    )
