"""What a sublayer does, by the products on its way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from adapter_export.sites.index import FlowIndex
from adapter_export.sites.site import Role
from adapter_export.sites.view import FlowNode

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
