"""Element-wise functions without parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from adapter_export.graph.graph import Node
from adapter_export.onnx.lowering.writer import Owned, Values, Write, Writer, nothing, one

_GELU_OPSET = 20
"""The first opset with `Gelu`."""


def _gelu(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    """Opset 20 has `Gelu`; before it, the spelling that onnxruntime's GeluFusion knows."""
    (x,) = values
    name = node.output
    if writer.opset >= _GELU_OPSET:
        return writer.op(name, "Gelu", (x,))
    scaled = writer.op(f"{name}/scaled", "Div", (x, writer.number(f"{name}/sqrt_2", math.sqrt(2), x)))
    erf = writer.op(f"{name}/erf", "Erf", (scaled,))
    return _half_of_x_times_one_plus(writer, name, x, erf)


def _gelu_tanh(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x,) = values
    name = node.output
    if writer.opset >= _GELU_OPSET:
        return writer.op(name, "Gelu", (x,), {"approximate": "tanh"})
    square = writer.op(f"{name}/square", "Mul", (x, x))
    cubic = writer.op(f"{name}/cubic", "Mul", (square, writer.number(f"{name}/coefficient", 0.044715, x)))
    factor = writer.op(f"{name}/factor", "Add", (cubic, writer.number(f"{name}/unit", 1.0, x)))
    inner = writer.op(f"{name}/inner", "Mul", (x, factor))
    scaled = writer.op(
        f"{name}/scaled", "Mul", (inner, writer.number(f"{name}/sqrt_2_over_pi", math.sqrt(2 / math.pi), x))
    )
    return _half_of_x_times_one_plus(writer, name, x, writer.op(f"{name}/tanh", "Tanh", (scaled,)))


def _half_of_x_times_one_plus(writer: Writer, name: str, x: ir.Value, value: ir.Value) -> ir.Value:
    shifted = writer.op(f"{name}/shifted", "Add", (value, writer.number(f"{name}/one", 1.0, x)))
    doubled = writer.op(f"{name}/doubled", "Mul", (x, shifted))
    return writer.op(name, "Mul", (doubled, writer.number(f"{name}/half", 0.5, x)))


def _silu(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x,) = values
    return writer.op(node.output, "Mul", (x, writer.op(f"{node.output}/gate", "Sigmoid", (x,))))


def _quick_gelu(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x,) = values
    name = node.output
    scaled = writer.op(f"{name}/scaled", "Mul", (x, writer.number(f"{name}/factor", 1.702, x)))
    return writer.op(name, "Mul", (x, writer.op(f"{name}/gate", "Sigmoid", (scaled,))))


def _leaky_relu(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    return writer.op(node.output, "LeakyRelu", values, {"alpha": float(node.attributes["slope"])})


def _relu6(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x,), name = values, node.output
    return writer.op(name, "Clip", (x, writer.number(f"{name}/low", 0, x), writer.number(f"{name}/high", 6, x)))


def _relu_squared(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    positive = writer.op(f"{node.output}/positive", "Relu", values)
    return writer.op(node.output, "Mul", (positive, positive))


def _mish(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    """ONNX has `Mish` from opset 18 on, but onnxruntime has no kernel for it."""
    (x,), name = values, node.output
    softplus = writer.op(f"{name}/softplus", "Softplus", (x,))
    return writer.op(name, "Mul", (x, writer.op(f"{name}/gate", "Tanh", (softplus,))))


WRITE: Mapping[str, Write] = {
    "relu": one("Relu"),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "silu": _silu,
    "tanh": one("Tanh"),
    "sigmoid": one("Sigmoid"),
    "leaky_relu": _leaky_relu,
    "relu6": _relu6,
    "relu_squared": _relu_squared,
    "mish": _mish,
    "elu": one("Elu"),
    "identity": nothing,
}
