"""Sums of values, of products, and weighted ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from adapter_export.graph.graph import Node
from adapter_export.onnx.lowering.writer import Owned, Values, Write, Writer, one


def _dot(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    return writer.sum(node.output, writer.op(f"{node.output}/products", "Mul", values), -1)


def _mix(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    """Weights [rows, N] become [rows, 1, N], beside values [batch, tokens, width]; stacked ones are so already."""
    writer.check_three_axes(node, values[0])
    name = node.output
    if writer.stacked:
        return _weighted_sum(writer, name, owned["weights"], values)
    axis = writer.integers(f"{name}/axis", [1])
    return _weighted_sum(writer, name, writer.op(f"{name}/weights", "Unsqueeze", (owned["weights"], axis)), values)


def _softmax_mix(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    name, count = node.output, len(values) // 2
    scores = writer.op(f"{name}/scores", "Concat", values[:count], {"axis": -1})
    temperature = writer.number(f"{name}/temperature", node.attributes["temperature"], values[0])
    scaled = writer.op(f"{name}/scaled", "Div", (scores, temperature))
    return _weighted_sum(writer, name, writer.op(f"{name}/shares", "Softmax", (scaled,), {"axis": -1}), values[count:])


def _weighted_sum(writer: Writer, name: str, weights: ir.Value, values: Sequence[ir.Value]) -> ir.Value:
    """Of as many values as the last axis of the weights is long."""
    parts = list(_weighted(writer, name, weights, values))
    for index, part in enumerate(parts[1:-1], start=1):
        parts[0] = writer.op(f"{name}/sum_{index}", "Add", (parts[0], part))
    return writer.op(name, "Add", (parts[0], parts[-1])) if len(parts) > 1 else parts[0]


def _weighted(writer: Writer, name: str, weights: ir.Value, values: Sequence[ir.Value]) -> Iterator[ir.Value]:
    for index, value in enumerate(values):
        at = writer.integers(f"{name}/index_{index}", [index])
        weight = writer.op(f"{name}/weight_{index}", "Gather", (weights, at), {"axis": -1})
        last = f"{name}/part_{index}" if len(values) > 1 else name
        yield writer.op(last, "Mul", (value, weight))


WRITE: Mapping[str, Write] = {
    "add": one("Add"),
    "multiply": one("Mul"),
    "dot": _dot,
    "mix": _mix,
    "softmax_mix": _softmax_mix,
}
