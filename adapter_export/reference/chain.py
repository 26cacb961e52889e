"""How long the arithmetic of a base is: what a budget for its rounding errors follows from."""

from __future__ import annotations

from adapter_export.graph.adapter import Adapter
from adapter_export.sites.view import FlowGraph


def products_in_sequence(flow: FlowGraph, adapter: Adapter | None = None) -> int:
    """How many products and norms follow each other on the longest way through a base, at least 1.

    Args:
        flow: the base.
        adapter: its weighted nodes at all sites and in its head are counted too, as if all lay on that way.
    """
    behind: dict[str, int] = {}
    longest = 0
    for node in flow.nodes:
        depth = max((behind.get(name, 0) for name in node.inputs), default=0) + (node.multiplies or node.kind == "norm")
        behind.update(dict.fromkeys(node.outputs, depth))
        longest = max(longest, depth)
    parts = () if adapter is None else adapter.parts()
    return max(1, longest + sum(bool(node.parameters) for _, graph, _ in parts for node in graph.nodes))


def longest_sum(flow: FlowGraph) -> int:
    """The number of terms of the longest dot product of known length: the widest value that a product reads."""
    widths = [flow.width(node.inputs[0]) for node in flow.nodes if node.multiplies and node.inputs]
    return max((width for width in widths if width is not None), default=1)
