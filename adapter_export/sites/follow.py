"""What follows the values of a sublayer: the norm behind its sum, and who reads what first."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

from adapter_export.sites.index import FlowIndex
from adapter_export.sites.site import Norm
from adapter_export.sites.view import FlowNode

_SAME = frozenset({"cast", "dropout", "identity", "to", "_to_copy", "contiguous", "clone", "type_as", "alias"})
"""Operations that change the type of numbers at most."""

_UNKNOWN = Norm("unknown", 0.0, None, None)


def block_output(index: FlowIndex, total: str, *, ends: bool) -> tuple[str, Norm | None]:
    """The block's output `y`, and the norm that makes it of the sum `total`.

    A norm counts if everything that is computed from the sum goes through it. Where the stream `ends` behind blocks
    with norms of their own before them, the norm that follows is that of the whole base, and no block's.
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
    """Whether a value is the sum itself, casts and dropouts aside."""
    while value != total:
        node = index.producer(value)
        if node is None or node.op.lower() not in _SAME or len(node.inputs) != 1:
            return False
        value = node.inputs[0]
    return True


def path_of(nodes: Iterable[FlowNode]) -> str | None:
    """The module of the last product, which users know as the output projection."""
    return next((node.path for node in reversed(list(nodes)) if node.multiplies), None)


def maker_of(index: FlowIndex, value: str) -> str | None:
    """The module that makes a value, dropouts and casts aside."""
    node = index.producer(value)
    while node is not None and node.kind == "other" and len(node.inputs) == 1 and index.flow.alike(*node.inputs, value):
        value = node.inputs[0]
        before = index.producer(value)
        if before is None:
            break
        node = before
    return None if node is None else node.path


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
