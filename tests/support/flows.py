"""Dataflow graphs written by hand, one line for each node."""

from __future__ import annotations

from collections.abc import Iterable

from adapter_export.sites.view import Dim, FlowGraph, FlowNode, NodeKind

STREAM: tuple[Dim, ...] = ("batch", "tokens", 8)
KINDS: dict[str, tuple[NodeKind, bool]] = {
    "linear": ("product", True),
    "matmul": ("product", False),
    "conv": ("convolution", True),
    "sdpa": ("attention", False),
    "norm": ("norm", False),
    "add": ("add", False),
    "view": ("layout", False),
}


def flow(
    text: str, *, outputs: Iterable[str] = ("out",), shapes: dict[str, tuple[Dim, ...]] | None = None
) -> FlowGraph:
    """A graph of lines `value = op input input …`; values are [batch, tokens, 8] unless `shapes` says otherwise."""
    nodes = []
    for line in filter(None, map(str.strip, text.splitlines())):
        value, op, *inputs = line.replace(" = ", " ").split()
        kind, weighted = KINDS.get(op, ("other", False))
        nodes.append(FlowNode(f"node_{value}", kind, op, tuple(inputs), (value,), weighted, f"module.{value}"))
    values = {name for node in nodes for name in (*node.inputs, *node.outputs)}
    return FlowGraph(nodes, dict.fromkeys(values, STREAM) | (shapes or {}), tuple(outputs))
