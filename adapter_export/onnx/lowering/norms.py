"""Norms over the last axis."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from adapter_export.graph.graph import Node
from adapter_export.onnx.lowering.writer import Owned, Values, Write, Writer

_SMALLEST_NORM = 1e-12


def _layer_norm(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    inputs = (values[0], owned["weight"], *([owned["bias"]] if "bias" in owned else []))
    return writer.op(node.output, "LayerNormalization", inputs, {"epsilon": float(node.attributes["epsilon"])})


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
