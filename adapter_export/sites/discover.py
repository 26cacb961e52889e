"""Find the sublayers of a base by the structure of its dataflow.

The residual stream is a chain of sums `x + h`: `h` is computed from `x` through trained weights, and the next `x` from
the sum only through norms, dropouts and scales. Each such `h` is a sublayer. Sums of embeddings, a mask, a bias or
inside a sublayer are not on the chain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import takewhile
from typing import NamedTuple

from adapter_export.errors import NoSitesError
from adapter_export.sites.coverage import coverage_of
from adapter_export.sites.linear_layers import layer_of, linear_sites, outside_sites
from adapter_export.sites.lookups import lookup_sites
from adapter_export.sites.site import Norm, Role, Site, SiteMap
from adapter_export.sites.streams import Residual, Stream, layers_of, named_streams, role_of
from adapter_export.sites.view import FlowGraph, FlowIndex, FlowNode, is_stream
from adapter_export.tables import number_of

OTHER_CALLS_KEY = "adapter_export.other_calls"
"""Metadata key of an ONNX graph for the base's `FlowGraph.other_calls` before the export, as JSON."""

_SAME = frozenset({"cast", "dropout", "identity", "to", "_to_copy", "contiguous", "clone", "type_as", "alias"})
"""Operations that change at most the data type."""

_UNKNOWN = Norm("unknown", 0.0, None, None)


def discover(flow: FlowGraph) -> SiteMap:
    """Find the sites of a base; in an encoder–decoder, names start with the stream.

    Raises NoSitesError without a residual stream, or with several that are not encoder and decoder.
    """
    index = FlowIndex(flow)
    streams = named_streams(index)
    if not streams:
        raise _no_sites(flow)
    final = _final(index, streams[-1].sums[-1].total)
    if flow.rank(final) != 3:  # a stream without tokens, such as in a tabular network
        raise _no_sites(flow)
    sublayers: list[list[Site]] = []
    for stream in streams:
        first = 1 + max((site.layer for sites in sublayers for site in sites if site.layer is not None), default=-1)
        sublayers.append(list(_stream_sites(index, stream, first)))
    ends = stream_values(site for sites in sublayers for site in sites)
    sites_found: list[Site] = []
    for stream, sites in zip(streams, sublayers, strict=True):
        start = stream.sums[0].x
        if index.producer(start) is not None:  # a base may read the stream itself
            sites_found.append(embeddings_site(index, f"{stream.prefix}embeddings", start))
        sources = {residual.x: residual.source for residual in stream.sums}
        for sublayer in sites:
            sites_found += [*linear_sites(index, sublayer, ends - {sublayer.h}, sources[sublayer.x or ""]), sublayer]
    covered = coverage_of(index, [site for sites in sublayers for site in sites], final)
    names = [site.name for site in sites_found]
    for site in (*outside_sites(index, sites_found), *lookup_sites(index, names)):
        behind = (at for at, other in enumerate(sites_found) if index.position(other.h) >= index.position(site.h))
        sites_found.insert(next(behind, len(sites_found)), site)
    read = flow.head_input or final
    return SiteMap(tuple(with_calls(index, sites_found)), read, _width(flow, read), covered)


def stream_values(sublayers: Iterable[Site]) -> set[str]:
    """Return the values at which sublayers start and end."""
    return {value for site in sublayers for value in (site.x, site.h, site.y) if value is not None}


class _Sublayer(NamedTuple):
    """A sublayer, which computes `h` from `x`; `add` is the node that reads `h`."""

    role: Role
    h: str
    add: FlowNode


def _stream_sites(index: FlowIndex, stream: Stream, first: int) -> Iterator[Site]:
    """Yield the sublayers of a stream, whose layers are numbered from `first` in the base, and from 0 in names.

    Among sublayers with the same `x`, attention comes first.
    """
    groups: dict[str, list[_Sublayer]] = {}
    for residual in stream.sums:
        groups.setdefault(residual.x, []).extend(_split(index, residual, residual.h, residual.add))
    sums = {residual.x: residual for residual in stream.sums}
    continued = {residual.previous.total for residual in stream.sums if residual.previous is not None}
    pairs = [
        (x, sublayer) for x, group in groups.items() for sublayer in sorted(group, key=lambda each: each.role == "ffn")
    ]
    for (x, sublayer), layer in zip(pairs, layers_of(sublayer.role for _, sublayer in pairs), strict=True):
        h, total, source = sublayer.h, sums[x].total, sums[x].source
        positions = index.between(source, h)
        u = index.last_before_product(x, positions, readers=set(positions)) if source == x else None
        y, norm = block_output(index, total, ends=total not in continued and u != x)
        width = _width(index.flow, h)
        yield Site(
            name=f"{stream.prefix}layers.{layer}.{sublayer.role}",
            role=sublayer.role,
            layer=first + layer,
            width=width,
            width_in=width,
            h=h,
            x=x,
            u=u,
            y=y,
            norm=norm,
            residual=sublayer.add.name,
            path=path_of([index.nodes[at] for at in positions]),
            followed_by=follower_of(index, total),
        )


def _split(index: FlowIndex, residual: Residual, h: str, add: FlowNode) -> Iterator[_Sublayer]:
    """Yield one sublayer, or attention and ffn if `h` is the sum of both (parallel blocks)."""
    inner = index.producer(h)
    while inner is not None and inner.op.lower() in _SAME and len(inner.inputs) == 1:  # a dropout of the sum of both
        inner = index.producer(inner.inputs[0])
    if inner is not None and _is_parallel(index, residual.source, inner):
        for part in inner.inputs:
            yield from _split(index, residual, part, inner)
    else:
        yield _Sublayer(role_of(index, residual.source, h), h, add)


def _is_parallel(index: FlowIndex, x: str, add: FlowNode) -> bool:
    """Return whether a node adds two sublayers of `x`: of different roles, neither computed from the other."""
    if add.kind != "add" or not all(index.ancestry.is_weighted(x, value) for value in add.inputs):
        return False
    first, other = add.inputs
    nested = index.ancestry.depends(first, on=other) or index.ancestry.depends(other, on=first)
    return not nested and role_of(index, x, first) != role_of(index, x, other)


def embeddings_site(index: FlowIndex, name: str, start: str) -> Site:
    """Return the site of the stream's first value."""
    width, value, node = _width(index.flow, start), start, index.producer(start)
    while node is not None and node.kind == "other" and len(node.inputs) == 1 and index.flow.alike(*node.inputs, value):
        value = node.inputs[0]  # the module that computes the value, ignoring dropouts and casts
        before = index.producer(value)
        if before is None:
            break
        node = before
    return Site(name, "embeddings", None, width, width, start, path=None if node is None else node.path)


def _final(index: FlowIndex, total: str) -> str:
    """Return the final hidden state [batch, tokens, d]: the last sum, after a following norm."""
    final = index.last_before_product(total, index.computed_from(total))
    restored = [node.outputs[0] for node in index.readers(final) if node.kind == "layout" and node.inputs == (final,)]
    if index.flow.rank(final) == 2 and len(restored) == 1:  # the tokens of the batch were in one row
        return _final(index, restored[0])
    return final


def block_output(index: FlowIndex, total: str, *, ends: bool) -> tuple[str, Norm | None]:
    """Return the block's output `y`, and the norm after the sum `total`, if all consumers of the sum read it.

    The norm at the end of a stream (`ends`) of pre-norm blocks belongs to the base, not to a block.
    """
    behind = () if ends else index.computed_from(total)
    positions = list(takewhile(lambda at: not index.nodes[at].multiplies, behind))
    through = index.last_before_product(total, positions)
    inside = [at for at in positions if at <= index.position(through)]
    for count, at in enumerate(inside, 1):
        node = index.nodes[at]
        if node.norm is not None and index.last_before_product(total, inside[:count]) in node.outputs:
            known = node.normed is not None and _is_same(index, node.normed, total)
            return index.last_before_product(total, inside[:count]), node.norm if known else _UNKNOWN
    if any(_is_statistic(index, index.nodes[at]) for at in inside):
        return through, _UNKNOWN
    return total, None


def _is_same(index: FlowIndex, value: str, total: str) -> bool:
    """Return whether a value equals the sum, ignoring casts and dropouts."""
    while value != total:
        node = index.producer(value)
        if node is None or node.op.lower() not in _SAME or len(node.inputs) != 1:
            return False
        value = node.inputs[0]
    return True


def path_of(nodes: Iterable[FlowNode]) -> str | None:
    """Return the module of the last product, usually the output projection."""
    return next((node.path for node in reversed(list(nodes)) if node.multiplies), None)


def follower_of(index: FlowIndex, total: str) -> str:
    """Return the kind of the first reader of the sum, ignoring casts, dropouts and reshapes."""
    for at in index.computed_from(total):
        node = index.nodes[at]
        if node.kind not in ("other", "layout"):
            return node.kind
        if _is_statistic(index, node):
            return "norm"
    return next((node.kind for node in index.readers(total)), "output")


def _is_statistic(index: FlowIndex, node: FlowNode) -> bool:
    """Return whether a node reduces the features of each token, the first step of a decomposed norm."""
    return node.kind == "other" and not index.flow.alike(node.inputs[0], node.outputs[0])


def with_calls(index: FlowIndex, sites: Iterable[Site]) -> Iterator[Site]:
    """Yield the sites, linear ones with the number of their module's calls that are not sites.

    DeBERTa projects relative positions with its query and key layers (He et al. 2021, §3.1), which exporters may fold.
    A module is identified by its path, which may cover matrices of several shapes, and by its matrix. A layer without
    path outside of sublayers may be such a call of an inner layer.
    """
    sites = list(sites)
    products = [node for node in index.nodes if node.linear]
    layers = ((product, layer_of(index, product)) for product in products)
    products_by_value = {layer.h: product for product, layer in layers if layer is not None}
    layer_sites = [site for site in sites if site.role == "linear" and site.h in products_by_value]
    sites_nodes = [products_by_value[site.h] for site in layer_sites if not (site.is_outside and site.path is None)]
    calls, known = (
        Counter(name for node in nodes for name in _names(index, node)) for nodes in (products, sites_nodes)
    )
    for site in sites:
        if site.role != "linear" or site.h not in products_by_value:
            yield site
            continue
        names = _names(index, products_by_value[site.h])
        itself = products_by_value[site.h] not in sites_nodes
        more = max((calls[name] - known[name] - itself for name in names), default=0)
        of_weights = max((index.flow.other_calls.get(str(name[0]), 0) for name in names), default=0)
        yield replace(site, other_calls=more + of_weights)


def _names(index: FlowIndex, product: FlowNode) -> list[tuple[str, object]]:
    """Return the identities of a module: its path with the widths of its matrix, and the matrix."""
    widths = (index.flow.width(product.operands[0]), index.flow.width(product.outputs[0]))
    by_path = [] if product.path is None else [(product.path, widths)]
    return [*by_path, *([] if product.weight is None else [(product.weight, "weight")])]


def _width(flow: FlowGraph, value: str) -> int:
    width = flow.width(value)
    assert width is not None  # the width of a stream is known
    return width


def _no_sites(flow: FlowGraph) -> NoSitesError:
    products = sum(node.multiplies and node.weighted for node in flow.nodes)
    sums = [node.outputs[0] for node in flow.nodes if node.kind == "add"]
    shaped = sum(is_stream(flow, value) and flow.rank(value) == 3 for value in sums)
    return NoSitesError(
        "no residual stream was found in this base, so there are no sites for adapters",
        found=f"{products} products with trained weights and {number_of(len(sums), 'sum')} of two activations, "
        f"{shaped} of them of shape [batch, tokens, width] with a known width",
        expected="sums `x + h` of that shape, `h` computed from `x` through trained weights, as in every transformer",
        fix="pass a base with residual sublayers; capture a transformer with a fixed width and with its "
        "layers visible (in torch: `torch.backends.mha.set_fastpath_enabled(False)`)",
    )
