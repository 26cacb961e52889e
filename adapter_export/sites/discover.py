"""Find the sublayers of a base by the structure of its dataflow.

The residual stream shows as a chain of sums `x + h`: `h` is computed from `x` through trained weights, and the next
`x` is computed from the sum through norms, dropouts and scales alone. Each such `h` is a sublayer. Nothing else counts:
sums of embeddings do not depend on each other, a mask has no weights on its way, a bias is no activation, and a sum
inside a sublayer is not on the chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from adapter_export.errors import NoSitesError
from adapter_export.sites.ancestry import is_stream
from adapter_export.sites.index import FlowIndex
from adapter_export.sites.site import Norm, Role, Site, SiteMap
from adapter_export.sites.stream import Residual, residual_stream
from adapter_export.sites.view import FlowGraph, FlowNode


def discover(flow: FlowGraph) -> SiteMap:
    """Find the sites of a base.

    A sublayer is attention if a product of activations with activations lies on its way, else ffn. A new layer starts
    at each attention, and at an ffn whose layer has one already.

    Raises:
        NoSitesError: it has no residual stream, or several; the message says what was looked at.
    """
    index = FlowIndex(flow)
    stream = residual_stream(index)
    if not stream:
        raise _no_sites(flow)
    sublayers = list(_sublayers(index, stream))
    sites = tuple(_site(index, sublayer, layer) for sublayer, layer in zip(sublayers, _layers(sublayers), strict=True))
    final = _final(index, stream[-1].total)
    if flow.rank(final) != 3:  # a stream without tokens, such as that of a network for tables
        raise _no_sites(flow)
    return SiteMap(sites, final, _width(flow, final))


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
        ordered = sorted(group, key=lambda sublayer: sublayer.role != "attention")
        total = group[-1].total
        yield from (replace(sublayer, total=total, is_last=total not in continued) for sublayer in ordered)


def _split(index: FlowIndex, residual: Residual, h: str, add: FlowNode) -> Iterator[_Sublayer]:
    """One sublayer, or attention and ffn where `h` is the sum of both (parallel blocks)."""
    inner = index.producer(h)
    if inner is not None and _is_parallel(index, residual.x, inner):
        for part in inner.inputs:
            yield from _split(index, residual, part, inner)
    else:
        yield _Sublayer(_role(index, residual.x, h), residual.x, h, add, residual.total)


def _is_parallel(index: FlowIndex, x: str, add: FlowNode) -> bool:
    """Whether it adds two sublayers of `x`: of different roles, neither computed from the other."""
    if add.kind != "add" or not all(index.ancestry.is_weighted(x, value) for value in add.inputs):
        return False
    one, other = add.inputs
    nested = index.ancestry.depends(one, on=other) or index.ancestry.depends(other, on=one)
    return not nested and _role(index, x, one) != _role(index, x, other)


def _role(index: FlowIndex, x: str, h: str) -> Role:
    return "attention" if index.ancestry.is_mixed(x, h) else "ffn"


def _layers(sublayers: Iterable[_Sublayer]) -> Iterator[int]:
    layer, roles = 0, set[Role]()
    for sublayer in sublayers:
        if roles and (sublayer.role == "attention" or "ffn" in roles):
            layer, roles = layer + 1, set()
        roles.add(sublayer.role)
        yield layer


def _site(index: FlowIndex, sublayer: _Sublayer, layer: int) -> Site:
    positions = index.between(sublayer.x, sublayer.h)
    u = index.last_before_product(sublayer.x, positions, readers=set(positions))
    y, norm = block_output(index, sublayer.total, ends=sublayer.is_last and u != sublayer.x)
    width = _width(index.flow, sublayer.h)
    return Site(
        name=f"layers.{layer}.{sublayer.role}",
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


def block_output(index: FlowIndex, total: str, *, ends: bool) -> tuple[str, Norm | None]:
    """The block's output `y`, and the norm that makes it of the sum `total`.

    A norm counts if everything that is computed from the sum goes through it. Where the stream `ends` behind blocks
    with norms of their own before them, the norm that follows is that of the whole base, and no block's.
    """
    positions = [] if ends else list(index.computed_from(total))
    through = index.last_before_product(total, positions)
    inside = [at for at in positions if at <= index.position(through)]
    for count, at in enumerate(inside, 1):
        node = index.nodes[at]
        if node.norm is not None and index.last_before_product(total, inside[:count]) in node.outputs:
            return index.last_before_product(total, inside[:count]), node.norm
    if any(_is_statistic(index, index.nodes[at]) for at in inside):
        return through, Norm("unknown", 0.0, None, None)
    return total, None


def path_of(nodes: Iterable[FlowNode]) -> str | None:
    """The module of the last product, which users know as the output projection."""
    return next((node.path for node in reversed(list(nodes)) if node.multiplies), None)


def follower_of(index: FlowIndex, total: str) -> str:
    """The kind of what reads the sum first, casts, dropouts and reshapes aside."""
    for at in index.computed_from(total):
        node = index.nodes[at]
        if node.kind not in ("other", "layout"):
            return node.kind
        if _is_statistic(index, node):
            return "norm"
    return next((node.kind for node in index.readers(total)), "output")


def _is_statistic(index: FlowIndex, node: FlowNode) -> bool:
    """Whether it reduces the features of each token, as a norm in small pieces begins."""
    return node.kind == "other" and not index.flow.alike(node.inputs[0], node.outputs[0])


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
