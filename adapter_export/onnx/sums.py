"""Sums of activations inside other operators of the ONNX standard: written out, so that each sum is an `Add`.

`Sum` adds any number of values. `Gemm` adds its third input to a product; where that is an activation, a tool has put a
residual sum into it.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.onnx.flow import activations_of

_C = 2
"""The input of `Gemm` that is added to the product."""


def open_sums(graph: ir.Graph) -> None:
    """Write out the sums of a graph, in place.

    The numbers stay what they were, the rounding of a `Gemm` aside.

    Raises:
        BaseModelError: a sum of activations holds a weight or a factor, too, and nothing says whose it is.
    """
    activations = activations_of(graph)
    for node in list(graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Sum":
            _open_sum(graph, node, [value for value in node.inputs if value and value.name in activations])
        elif node.op_type == "Gemm" and len(node.inputs) > _C:
            added = node.inputs[_C]
            if added is not None and added.name in activations:
                _open_gemm(graph, node, added)


def _open_sum(graph: ir.Graph, node: ir.Node, activations: Sequence[ir.Value]) -> None:
    if len(activations) < 2 or len(node.inputs) == 2:
        return
    if len(activations) < len(node.inputs):
        raise _ambiguous(node, "weights among what it adds")
    total, *rest = activations
    result = node.outputs[0]
    for at, value in enumerate(rest[:-1]):
        partial = ir.Value(name=f"{result.name}/{at}", type=result.type, shape=result.shape)
        graph.insert_before(node, ir.Node("", "Add", [total, value], outputs=[partial], name=partial.name))
        total = partial
    _replace(graph, node, ir.Node("", "Add", [total, rest[-1]], name=node.name))


def _open_gemm(graph: ir.Graph, node: ir.Node, added: ir.Value) -> None:
    if node.attributes.get_float("beta", 1.0) != 1.0:
        raise _ambiguous(node, "`beta`, a factor of what it adds")
    result = node.outputs[0]
    product = ir.Value(name=f"{result.name}/product", type=result.type, shape=result.shape)
    attributes = [attribute for attribute in node.attributes.values() if attribute.name != "beta"]
    bare = ir.Node(
        "",
        "Gemm",
        node.inputs[:_C],
        attributes,
        outputs=[product],
        name=product.name,
        metadata_props=node.metadata_props,
    )
    graph.insert_before(node, bare)
    _replace(graph, node, ir.Node("", "Add", [product, added], name=node.name))


def _replace(graph: ir.Graph, node: ir.Node, new: ir.Node) -> None:
    """Put a node in the place of another; its output takes over name, type, shape and readers."""
    old, output = node.outputs[0], new.outputs[0]
    output.type, output.shape = old.type, old.shape
    name = old.name
    graph.insert_before(node, new)
    for at, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[at] = output
    old.replace_all_uses_with(output)
    graph.remove(node)
    output.name = name


def _ambiguous(node: ir.Node, found: str) -> BaseModelError:
    return BaseModelError(
        "adds activations in one operator with something else, and nothing says to which of them that belongs",
        where=f"`{node.outputs[0].name}`, {node.op_type}",
        found=found,
        expected="an `Add` for each sum",
        fix="give the graph as it was before it was optimised; ONNX Runtime fuses it again when it loads it",
    )
