"""Find the sublayers of a base by the structure of its dataflow.

The residual stream shows as a chain of sums `x + h`: `h` is computed from `x` through trained weights, and the next
`x` is computed from the sum through norms, dropouts and scales alone. Each such `h` is a sublayer. Nothing else counts:
sums of embeddings do not depend on each other, a mask has no weights on its way, a bias is no activation, and a sum
inside a sublayer is not on the chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from adapter_export.errors import NoSitesError
from adapter_export.sites.ancestry import is_stream
from adapter_export.sites.index import FlowIndex
from adapter_export.sites.site import Role, Site, SiteMap
from adapter_export.sites.stream import Residual, residual_stream
from adapter_export.sites.view import FlowGraph, FlowNode


def discover(flow: FlowGraph) -> SiteMap:
    """Find the sites of a base.

    A sublayer is attention if a product of activations with activations lies on its way, else ffn. A new layer starts
    at each attention, and at an ffn whose layer has one already. Of several streams, the longest is taken.

    Raises:
        NoSitesError: it has no residual stream; the message says what was looked at.
    """
    index = FlowIndex(flow)
    stream = residual_stream(index)
    if not stream:
        raise _no_sites(flow)
    sublayers = list(_sublayers(index, stream))
    sites = tuple(_site(index, sublayer, layer) for sublayer, layer in zip(sublayers, _layers(sublayers), strict=True))
    total = stream[-1].total
    final = index.last_before_product(total, index.computed_from(total))
    return SiteMap(sites, final, _width(flow, final))


@dataclass(frozen=True)
class _Sublayer:
    """What computes one `h` from `x`; `add` is the node that reads `h`, `total` the sum with the stream."""

    role: Role
    x: str
    h: str
    add: FlowNode
    total: str


def _sublayers(index: FlowIndex, stream: Iterable[Residual]) -> Iterator[_Sublayer]:
    """The sublayers in order; of those that read the same `x`, attention first."""
    groups: dict[str, list[_Sublayer]] = {}
    for residual in stream:
        groups.setdefault(residual.x, []).extend(_split(index, residual, residual.h, residual.add))
    for group in groups.values():
        yield from sorted(group, key=lambda sublayer: sublayer.role != "attention")


def _split(index: FlowIndex, residual: Residual, h: str, add: FlowNode) -> Iterator[_Sublayer]:
    """One sublayer, or attention and ffn where `h` is the sum of both (parallel blocks)."""
    inner = index.producer(h)
    if inner is not None and index.read_once(h) and _is_parallel(index, residual.x, inner):
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
    return Site(
        name=f"layers.{layer}.{sublayer.role}",
        role=sublayer.role,
        layer=layer,
        width=_width(index.flow, sublayer.h),
        h=sublayer.h,
        x=sublayer.x,
        u=index.last_before_product(sublayer.x, positions, readers=set(positions)),
        residual=sublayer.add.name,
        path=_path([index.nodes[at] for at in positions]),
        followed_by=next((node.op for node in index.readers(sublayer.total)), "output"),
    )


def _path(nodes: Iterable[FlowNode]) -> str | None:
    """The module of the last product with trained weights, which users know as the output projection."""
    return [node for node in nodes if node.multiplies and node.weighted][-1].path


def _width(flow: FlowGraph, value: str) -> int:
    width = flow.width(value)
    assert width is not None  # a stream has a known width
    return width


def _no_sites(flow: FlowGraph) -> NoSitesError:
    adds = [node for node in flow.nodes if node.kind == "add"]
    streams = [node for node in adds if is_stream(flow, node.outputs[0])]
    products = sum(node.multiplies and node.weighted for node in flow.nodes)
    return NoSitesError(
        "no place for an adapter was found in this base",
        found=f"{products} products with trained weights and {len(adds)} sums of two activations, {len(streams)} of "
        "them of shape [batch, tokens, width], none of which adds to a value something computed from it by weights",
        expected="a residual stream: sums `x + sublayer(x)`, as every transformer has them",
        fix="give a base with residual sublayers; if it is a transformer, capture it with its layers visible "
        "(in torch: `torch.backends.mha.set_fastpath_enabled(False)`) and with three axes [batch, tokens, width]",
    )
