"""How much a base multiplies: the two numbers that decide how far rounding errors can grow in it."""

from __future__ import annotations

from dataclasses import dataclass

from adapter_export.sites.view import FlowGraph, FlowNode

_PRODUCTS_IN_ATTENTION = 2
"""Queries with keys, and the weights so found with the values."""


@dataclass(frozen=True)
class Extent:
    """The products of a base.

    Attributes:
        inner: the length of the longest dot product, as far as it is known.
        depth: the largest number of products that follow each other, at least 1.
    """

    inner: int
    depth: int


def extent(flow: FlowGraph) -> Extent:
    """Count the products on the longest way through a base, and the terms of the longest of them."""
    depths: dict[str, int] = {}
    for node in flow.nodes:
        depth = max((depths.get(name, 0) for name in node.inputs), default=0) + _products(node)
        depths.update(dict.fromkeys(node.outputs, depth))
    widths = [flow.width(node.inputs[0]) or 1 for node in flow.nodes if node.multiplies and node.inputs]
    return Extent(max(widths, default=1), max(depths.values(), default=1) or 1)


def _products(node: FlowNode) -> int:
    """Those of one node, one after the other; a fused attention may hold the projections in front of it as well."""
    return _PRODUCTS_IN_ATTENTION + node.weighted if node.kind == "attention" else int(node.multiplies)
