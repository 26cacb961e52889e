"""Operators that hold a residual sum inside, as ONNX Runtime and its tools fuse them: the sum, and how it is opened.

`SkipLayerNormalization` and `SkipSimplifiedLayerNormalization` (domain com.microsoft, opset 1) add two activations and
normalise the sum; the sum is their fourth output. A bias of theirs was fused into them from the sublayer that they add,
so it belongs to `h`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.sites.site import SiteMap

_BIAS = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}
"""The operators, and which of their inputs is the bias."""

_NORM = {
    "SkipLayerNormalization": "LayerNormalization",
    "SkipSimplifiedLayerNormalization": "SimplifiedLayerNormalization",
}
"""What is left of them when the sum is taken out."""

_BIASED = {"BiasGelu": "Gelu", "FastGelu": "FastGelu"}
"""Activations of com.microsoft whose second input is a bias of what they read, and the same without a bias."""

UNNAMED_SUM = "/sum"
"""What stands behind the name of such a node in the name of its sum, where nobody else reads it."""

SUMMANDS = 2
"""Their first inputs are what they add."""

_SUM_OUTPUT = 3

_ADDED = {"QLinearAdd": (0, 3), "FusedConv": (3,), "QOrderedMatMul": (6,), "BiasDropout": (2,), "BiasAdd": (2,)}
"""Operators of com.microsoft that add activations to what they compute, and the inputs that are such sums' parts."""


def is_skip_norm(node: ir.Node) -> bool:
    """Whether it adds two activations and normalises the sum."""
    return node.op_type in _BIAS


def hides_sum(node: ir.Node, activations: Set[str]) -> bool:
    """Whether it may hold a residual sum that cannot be opened; `activations` are those of the graph, by name."""
    if node.op_type.startswith("Skip"):
        return not is_skip_norm(node)
    added = [node.inputs[at] for at in _ADDED.get(node.op_type, ()) if at < len(node.inputs)]
    return bool(added) and all(value is not None and value.name in activations for value in added)


def sum_output(node: ir.Node) -> str | None:
    """The name of the sum inside such a node; none if the node keeps it to itself."""
    return (node.outputs[_SUM_OUTPUT].name or None) if len(node.outputs) > _SUM_OUTPUT else None


def take_bias(node: ir.Node) -> ir.Value | None:
    """Take the bias out of a node; the caller adds it to `h`. None for any other node, or one without a bias.

    Beside the sums, activations hold one: that of the linear layer before them.
    """
    bias = _bias(node)
    if bias is not None:
        node.replace_input_with(node.inputs.index(bias, 1), None)
    if bias is not None and node.op_type in _BIASED:
        node.resize_inputs(1)
        node.op_type = _BIASED[node.op_type]
    return bias


def open_sum(node: ir.Node) -> ir.Value:
    """Take the sum out of a node, which then is the norm alone.

    Returns:
        The sum. Whoever read it before reads it now; it has the name that it had, or none if it had none.
    """
    graph = node.graph
    assert graph is not None
    assert _bias(node) is None  # it belongs to `h`, and was put there before
    named = node.outputs[_SUM_OUTPUT] if len(node.outputs) > _SUM_OUTPUT else None
    add = ir.Node("", "Add", node.inputs[:SUMMANDS])
    total = add.outputs[0]
    total.shape, total.type = node.outputs[0].shape, node.outputs[0].type
    graph.insert_before(node, add)
    if named is not None:
        name = named.name
        for at, output in enumerate(graph.outputs):
            if output is named:
                graph.outputs[at] = total
        named.replace_all_uses_with(total)
        total.name = name
    read = [total, *(value for value in node.inputs[SUMMANDS:] if value is not None)]
    for at, value in enumerate(read):
        node.replace_input_with(at, value)
    node.resize_inputs(len(read))
    node.resize_outputs(1)
    node.op_type, node.domain = _NORM[node.op_type], ""
    return total


def check_biases(nodes: Mapping[str, ir.Node], sites: SiteMap) -> None:
    """Every fused bias belongs to one sublayer.

    Args:
        nodes: those of the graph by the names that `sites` uses.
        sites: what was found in it.

    Raises:
        BaseModelError: a bias was fused behind the sum of two parallel sublayers, and nothing says whose it is.
    """
    residuals = {site.residual for site in sites.sublayers if site.residual is not None}
    sums = {value for name in residuals for value in nodes[name].outputs}
    for name, node in nodes.items():
        if name not in residuals and _bias(node) is not None and not sums.isdisjoint(node.inputs[:SUMMANDS]):
            raise BaseModelError(
                "a bias was fused behind the sum of two sublayers, and nothing says to which it belongs",
                where=f"`{name}`, {node.op_type}",
                fix="give the graph as it was before it was optimised; ONNX Runtime fuses it again when it loads it",
            )


def _bias(node: ir.Node) -> ir.Value | None:
    at = 1 if node.op_type in _BIASED and node.domain == "com.microsoft" else _BIAS.get(node.op_type)
    return node.inputs[at] if at is not None and at < len(node.inputs) else None
