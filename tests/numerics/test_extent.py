"""Sizes of a base's products, counted on graphs small enough to count by hand."""

from __future__ import annotations

from dataclasses import replace

from adapter_export.numerics.budget import Extent, extent
from adapter_export.sites.view import FlowGraph, FlowNode, NodeKind


def node(name: str, kind: NodeKind, *inputs: str, weighted: bool = True) -> FlowNode:
    return FlowNode(name, kind, kind, inputs, (name,), weighted=weighted)


def flow(*nodes: FlowNode, **widths: int) -> FlowGraph:
    return FlowGraph(nodes, {name: (None, None, width) for name, width in widths.items()}, (nodes[-1].name,))


def test_products_one_after_the_other_count_and_those_beside_do_not() -> None:
    nodes = (
        node("q", "product", "x"),
        node("k", "product", "x"),
        node("scores", "product", "q", "k"),
        node("sum", "add", "scores", "x"),
        node("norm", "norm", "sum"),
        node("out", "convolution", "norm"),
    )
    assert extent(flow(*nodes, x=8, q=4, norm=16)) == Extent(inner=16, depth=3)


def test_a_fused_attention_holds_two_products_and_its_projections() -> None:
    assert extent(flow(node("mixed", "attention", "x", weighted=False), x=8)) == Extent(inner=8, depth=2)
    assert extent(flow(node("mixed", "attention", "x"), x=8)) == Extent(inner=8, depth=3)


def test_a_number_of_a_convolution_adds_up_channels_and_kernel() -> None:
    convolution = replace(node("out", "convolution", "x"), terms=3 * 4 * 4)
    assert extent(flow(convolution, x=8)) == Extent(inner=48, depth=1)


def test_a_graph_without_products_has_the_smallest_extent() -> None:
    assert extent(flow(node("sum", "add", "x", "y"))) == Extent(inner=1, depth=1)
