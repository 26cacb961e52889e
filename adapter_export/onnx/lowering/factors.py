"""Factors: constant, learned, per feature, per row."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from adapter_export.graph.graph import Node
from adapter_export.onnx.lowering.writer import Owned, Values, Write, Writer, nothing


def _scale(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x,) = values
    return writer.op(node.output, "Mul", (x, writer.number(f"{node.output}/factor", node.attributes["factor"], x)))


def _weighted(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    return writer.op(node.output, "Mul", (values[0], owned["weight"]))


def _keep_half(*, first: bool) -> Write:
    """For graphs that are not in their inference form, where most of these are zeros in weights."""

    def write(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
        (x,), name = values, node.output
        kept = _first_half(writer, name, x)
        zero = writer.number(f"{name}/zero", 0, x)
        return writer.op(name, "Where", (kept, x, zero) if first else (kept, zero, x), type=x.type)

    return write


def _first_half(writer: Writer, name: str, x: ir.Value) -> ir.Value:
    """Which features are in the first half, [width]."""
    width = writer.op(f"{name}/width", "Squeeze", (writer.width(f"{name}/widths", x),))
    half = writer.op(f"{name}/half", "Div", (width, writer.integers(f"{name}/two", 2)))
    start, step = writer.integers(f"{name}/start", 0), writer.integers(f"{name}/step", 1)
    index = writer.op(f"{name}/index", "Range", (start, width, step))
    return writer.op(f"{name}/kept", "Less", (index, half), type=ir.TensorType(ir.DataType.BOOL))


def _gate(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    x, gate = values
    writer.check_three_axes(node, x)
    return writer.op(node.output, "Mul", (x, writer.mean(f"{node.output}/mean", gate, -2)))


WRITE: Mapping[str, Write] = {
    "scale": _scale,
    "learned_scale": _weighted,
    "scale_features": _weighted,
    "keep_first_half": _keep_half(first=True),
    "keep_second_half": _keep_half(first=False),
    "gate": _gate,
    "dropout": nothing,
    "drop_path": nothing,
}
