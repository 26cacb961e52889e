"""Norms over the last axis."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from adapter_export.graph.bind import BORROWED_WEIGHT
from adapter_export.graph.graph import Node
from adapter_export.onnx.lowering.writer import Owned, Values, Write, Writer

_SMALLEST_NORM = 1e-12


def _layer_norm(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    if writer.stacked and not _is_borrowed(node):
        return _layer_norm_of_rows(writer, node, values[0], owned)
    inputs = (values[0], owned["weight"], *([owned["bias"]] if "bias" in owned else []))
    return writer.op(node.output, "LayerNormalization", inputs, {"epsilon": float(node.attributes["epsilon"])})


def _layer_norm_of_rows(writer: Writer, node: Node, x: ir.Value, owned: Owned) -> ir.Value:
    """In pieces: `LayerNormalization` takes one weight for all rows."""
    name = node.output
    centred = writer.op(f"{name}/centred", "Sub", (x, writer.mean(f"{name}/mean", x, -1)))
    variance = writer.mean(f"{name}/variance", writer.op(f"{name}/square", "Mul", (centred, centred)), -1)
    epsilon = writer.number(f"{name}/epsilon", node.attributes["epsilon"], x)
    root = writer.op(f"{name}/root", "Sqrt", (writer.op(f"{name}/shifted", "Add", (variance, epsilon)),))
    scaled = writer.op(f"{name}/scaled", "Mul", (writer.op(f"{name}/normal", "Div", (centred, root)), owned["weight"]))
    return writer.op(name, "Add", (scaled, owned["bias"])) if "bias" in owned else scaled


def _is_borrowed(node: Node) -> bool:
    return node.parameters["weight"] == BORROWED_WEIGHT


def _rms_norm(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    """In the spelling that onnxruntime's SimplifiedLayerNormFusion knows; `RMSNormalization` is of opset 23."""
    (x,) = values
    name = node.output
    square = writer.op(f"{name}/square", "Pow", (x, writer.number(f"{name}/two", 2.0, x)))
    epsilon = writer.number(f"{name}/epsilon", node.attributes["epsilon"], x)
    shifted = writer.op(f"{name}/shifted", "Add", (writer.mean(f"{name}/mean", square, -1), epsilon))
    normal = writer.op(f"{name}/normal", "Div", (x, writer.op(f"{name}/root", "Sqrt", (shifted,))))
    return writer.op(name, "Mul", (normal, owned["weight"]))


def _l2_normalise(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x,), name = values, node.output
    squares = writer.sum(f"{name}/squares", writer.op(f"{name}/square", "Mul", (x, x)), -1)
    length = writer.op(f"{name}/length", "Sqrt", (squares,))
    divisor = writer.op(f"{name}/divisor", "Max", (length, writer.number(f"{name}/smallest", _SMALLEST_NORM, x)))
    return writer.op(name, "Div", (x, divisor))


WRITE: Mapping[str, Write] = {"layer_norm": _layer_norm, "rms_norm": _rms_norm, "l2_normalise": _l2_normalise}
