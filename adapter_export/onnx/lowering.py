"""The ONNX lowering: every op as nodes of the standard ONNX domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.interpret import Lowering, interpret

MINIMUM_OPSET = 17
"""The first opset with `LayerNormalization`."""

_GELU_OPSET = 20
_REDUCE_AXES_OPSET = 18

Values = tuple[ir.Value, ...]
Owned = Mapping[str, ir.Value]


def emit(graph: AdapterGraph, inputs: Owned, parameters: Owned, writer: Writer) -> ir.Value:
    """Write an adapter graph as ONNX nodes.

    Args:
        graph: best in its `inference_form`; `identity` and `dropout` write nothing.
        inputs: the ONNX value of each site value that the graph reads; in a head, `mask` as floating-point numbers.
        parameters: the ONNX value of each parameter, [in, out] for weights; each feeds its `MatMul` as it is.
        writer: where the nodes go, and under which names.

    Returns:
        The value of the graph's result; one of `inputs` if the graph computes nothing.
    """
    return interpret(graph, lowerings(writer), inputs, parameters)[graph.result]


@dataclass(frozen=True)
class Writer:
    """Writes named nodes on a tape.

    A node and the value that it defines have one name: `<prefix>/<value>`, or `<prefix>/<value>/<part>` where an op
    takes several nodes. Parameters are named with dots, so neither can meet the other.

    Attributes:
        tape: collects the nodes; constants are `Constant` nodes, so the nodes are all there is.
        prefix: the name of the place, such as `adapter.layers.0.ffn`.
        opset: of the graph that the nodes will stand in, at least `MINIMUM_OPSET`.
        metadata: written on each node.
    """

    tape: ir.tape.Tape
    prefix: str
    opset: int
    metadata: Mapping[str, str] = field(default_factory=dict)

    def op(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, float | str | list[int]] | None = None,
    ) -> ir.Value:
        """Write one node whose output has the type of its first input."""
        full_name = f"{self.prefix}/{name}"
        output = ir.Value(name=full_name, type=inputs[0].type)
        return self.tape.op(
            op_type, inputs, attributes, name=full_name, output=output, metadata_props=dict(self.metadata)
        )

    def number(self, name: str, value: float, like: ir.Value) -> ir.Value:
        """Write a scalar of the type of `like`; float32, the type of every adapter tensor, where that is unknown."""
        return self._constant(name, ir.tensor(value, dtype=like.dtype or ir.DataType.FLOAT))

    def integers(self, name: str, value: int | Sequence[int]) -> ir.Value:
        """Write an index or a list of axes."""
        return self._constant(name, ir.tensor(value, dtype=ir.DataType.INT64))

    def _constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        full_name = f"{self.prefix}/{name}"
        output = ir.Value(name=full_name, type=ir.TensorType(tensor.dtype))
        return self.tape.op(
            "Constant", (), {"value": tensor}, name=full_name, output=output, metadata_props=dict(self.metadata)
        )


Write = Callable[[Writer, Node, Values, Owned], ir.Value]


def lowerings(writer: Writer) -> Mapping[str, Lowering[ir.Value]]:
    """The ops, each writing its nodes by `writer`."""
    return {op: _bound(write, writer) for op, write in _WRITE.items()}


def _bound(write: Write, writer: Writer) -> Lowering[ir.Value]:
    return lambda node, values, owned: write(writer, node, values, owned)


def _one(op_type: str) -> Write:
    return lambda writer, node, values, _owned: writer.op(node.output, op_type, values)


def _nothing(_: Writer, __: Node, values: Values, ___: Owned) -> ir.Value:
    return values[0]


def _linear(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    (x,) = values
    if "bias" not in owned:
        return writer.op(node.output, "MatMul", (x, owned["weight"]))
    product = writer.op(f"{node.output}/product", "MatMul", (x, owned["weight"]))
    return writer.op(node.output, "Add", (product, owned["bias"]))


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


def _scale(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x,) = values
    return writer.op(node.output, "Mul", (x, writer.number(f"{node.output}/factor", node.attributes["factor"], x)))


def _layer_norm(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    inputs = (values[0], owned["weight"], *([owned["bias"]] if "bias" in owned else []))
    return writer.op(node.output, "LayerNormalization", inputs, {"epsilon": float(node.attributes["epsilon"])})


def _rms_norm(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    """In the spelling that onnxruntime's SimplifiedLayerNormFusion knows; `RMSNormalization` is of opset 23."""
    (x,) = values
    name = node.output
    square = writer.op(f"{name}/square", "Pow", (x, writer.number(f"{name}/two", 2.0, x)))
    epsilon = writer.number(f"{name}/epsilon", node.attributes["epsilon"], x)
    shifted = writer.op(f"{name}/shifted", "Add", (_mean(writer, f"{name}/mean", square, -1), epsilon))
    normal = writer.op(f"{name}/normal", "Div", (x, writer.op(f"{name}/root", "Sqrt", (shifted,))))
    return writer.op(name, "Mul", (normal, owned["weight"]))


def _mean(writer: Writer, name: str, x: ir.Value, axis: int) -> ir.Value:
    """The mean over one axis, which stays; its number is an attribute before opset 18 and an input from there on."""
    if writer.opset < _REDUCE_AXES_OPSET:
        return writer.op(name, "ReduceMean", (x,), {"axes": [axis], "keepdims": 1})
    return writer.op(name, "ReduceMean", (x, writer.integers(f"{name}/axis", [axis])), {"keepdims": 1})


def _first_token(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    index = writer.integers(f"{node.output}/index", 0)
    return writer.op(node.output, "Gather", (values[0], index), {"axis": 1})


def _mean_pool(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    """As one product per row, [1, tokens] @ [tokens, width]: no masked copy of the hidden state is made."""
    x, mask = values
    name = node.output
    axis = writer.integers(f"{name}/axis", [1])
    row = writer.op(f"{name}/row", "Unsqueeze", (mask, axis))
    total = writer.op(f"{name}/total", "Squeeze", (writer.op(f"{name}/product", "MatMul", (row, x)), axis))
    count = writer.op(f"{name}/count", "ReduceSum", (mask, axis))
    at_least_one = writer.op(f"{name}/at_least_one", "Max", (count, writer.number(f"{name}/one", 1.0, mask)))
    return writer.op(name, "Div", (total, at_least_one))


_WRITE: Mapping[str, Write] = {
    "linear": _linear,
    "relu": _one("Relu"),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "silu": _silu,
    "tanh": _one("Tanh"),
    "sigmoid": _one("Sigmoid"),
    "leaky_relu": _leaky_relu,
    "identity": _nothing,
    "scale": _scale,
    "dropout": _nothing,
    "add": _one("Add"),
    "multiply": _one("Mul"),
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "first_token": _first_token,
    "mean_pool": _mean_pool,
}
