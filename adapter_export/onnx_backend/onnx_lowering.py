"""ONNX lowering: every op of the adapter language as nodes of the standard ONNX domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import onnx_ir as ir

from adapter_export.graph.graph import BORROWED_WEIGHT, AdapterGraph, Lowering, Node, interpret
from adapter_export.graph.ops import INDEX_BASE, check_three_axes

_SMALLEST_NORM = 1e-12
"""The smallest divisor of `l2_normalise`: the `eps` of torch's `normalize`."""

MINIMUM_OPSET = 17
"""First opset with `LayerNormalization`."""

_GELU_OPSET = 20
"""First opset with `Gelu`."""

_REDUCE_AXES_OPSET = 18
"""First opset in which the axes of means and maxima are an input; for `ReduceSum` they already are in opset 17."""

_BOOL, _INT32, _INT64 = (ir.TensorType(dtype) for dtype in (ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64))

Values = tuple[ir.Value, ...]
Owned = Mapping[str, ir.Value]
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Writer:
    """Writes named nodes on a tape.

    A node and the value that it defines have one name: `<prefix>/<value>`, or `<prefix>/<value>/<step>` if an op takes
    several nodes. Parameters are named with dots, so the names cannot collide.

    Attributes:
        tape: collects the nodes; constants are `Constant` nodes, so nothing but nodes is added.
        prefix: name of the place, such as `adapter.layers.0.ffn`.
        opset: opset of the graph, at least `MINIMUM_OPSET`.
        metadata: metadata written on each node.
        stacked: whether the adapter's tensors have a leading axis of adapters, [adapters, in, out] and
            [adapters, 1, width], so that each row of the batch uses those of its adapter. A value with one vector per
            row then keeps the axis of the tokens, with length 1; a mask is [batch, 1, tokens].
        rows: if stacked, the row of each request in tables of lookups, which have all adapters: [batch].
    """

    tape: ir.tape.Tape
    prefix: str
    opset: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    stacked: bool = False
    rows: ir.Value | None = None

    def op(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Attributes | None = None,
        type: ir.TypeProtocol | None = None,
    ) -> ir.Value:
        """Write one node whose output has the type of its first input unless another is given."""
        full_name = f"{self.prefix}/{name}"
        output = ir.Value(name=full_name, type=type or inputs[0].type)
        return self.tape.op(
            op_type, inputs, attributes, name=full_name, output=output, metadata_props=dict(self.metadata)
        )

    def number(self, name: str, value: float, like: ir.Value) -> ir.Value:
        """Write a scalar of the type of `like`; float32, the type of every adapter tensor, if that is unknown."""
        return self.constant(name, ir.tensor(value, dtype=like.dtype or ir.DataType.FLOAT))

    def integers(self, name: str, value: int | Sequence[int]) -> ir.Value:
        """Write an index or a list of axes."""
        return self.constant(name, ir.tensor(value, dtype=ir.DataType.INT64))

    def mean(self, name: str, x: ir.Value, axis: int) -> ir.Value:
        """Write the mean over one axis, which is kept with length 1."""
        return self._reduce(name, "ReduceMean", x, axis, keep=True)

    def largest(self, name: str, x: ir.Value, axis: int, *, keep: bool) -> ir.Value:
        """Write the maximum over one axis, which is kept with length 1 or dropped."""
        return self._reduce(name, "ReduceMax", x, axis, keep=keep)

    def nonzero(self, name: str, mask: ir.Value) -> ir.Value:
        """Write the non-zero positions of a mask, as booleans."""
        return self.op(name, "Cast", (mask,), {"to": _BOOL.dtype}, type=_BOOL)

    def sum(self, name: str, x: ir.Value, axis: int) -> ir.Value:
        """Write the sum over one axis, which is kept with length 1."""
        return self.op(name, "ReduceSum", (x, self.integers(f"{name}/axis", [axis])), {"keepdims": 1})

    def _reduce(self, name: str, op_type: str, x: ir.Value, axis: int, *, keep: bool) -> ir.Value:
        if self.opset < _REDUCE_AXES_OPSET:
            return self.op(name, op_type, (x,), {"axes": [axis], "keepdims": int(keep)})
        return self.op(name, op_type, (x, self.integers(f"{name}/axis", [axis])), {"keepdims": int(keep)})

    def check_three_axes(self, node: Node, x: ir.Value) -> None:
        """Raise `GraphError` for a value that is known to have its rows and tokens on one axis."""
        check_three_axes(node.op, node.output, None if x.shape is None else len(x.shape))

    def width(self, name: str, x: ir.Value) -> ir.Value:
        """Write the length of the last axis, as a list of one integer."""
        return self.op(name, "Shape", (x,), {"start": -1}, type=_INT64)

    def constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Write a constant."""
        return self.op(name, "Constant", (), {"value": tensor}, type=ir.TensorType(tensor.dtype))


Write = Callable[[Writer, Node, Values, Owned], ir.Value]
"""Function that writes one op."""


def single_operator(op_type: str) -> Write:
    """Return the lowering of an op that is a single ONNX operator."""
    return lambda writer, node, values, _owned: writer.op(node.output, op_type, values)


def nothing(_: Writer, __: Node, values: Values, ___: Owned) -> ir.Value:
    """Return the input unchanged: the op does nothing at inference."""
    return values[0]


def _dot(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    return writer.sum(node.output, writer.op(f"{node.output}/products", "Mul", values), -1)


def _mix(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    """Write weights [rows, N] as [rows, 1, N], to match values [batch, tokens, width]; stacked weights already are."""
    writer.check_three_axes(node, values[0])
    name = node.output
    weights = owned["weights"]
    if not writer.stacked:
        weights = writer.op(f"{name}/weights", "Unsqueeze", (weights, writer.integers(f"{name}/axis", [1])))
    return _weighted_sum(writer, name, weights, values)


def _softmax_mix(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    name, count = node.output, len(values) // 2
    scores = writer.op(f"{name}/scores", "Concat", values[:count], {"axis": -1})
    temperature = writer.number(f"{name}/temperature", node.attributes["temperature"], values[0])
    scaled = writer.op(f"{name}/scaled", "Div", (scores, temperature))
    return _weighted_sum(writer, name, writer.op(f"{name}/shares", "Softmax", (scaled,), {"axis": -1}), values[count:])


def _weighted_sum(writer: Writer, name: str, weights: ir.Value, values: Sequence[ir.Value]) -> ir.Value:
    """Write the sum of N values, weighted by the last axis of the weights, [..., N]."""
    weighted = []
    for index, value in enumerate(values):
        at = writer.integers(f"{name}/index_{index}", [index])
        weight = writer.op(f"{name}/weight_{index}", "Gather", (weights, at), {"axis": -1})
        last = f"{name}/part_{index}" if len(values) > 1 else name
        weighted.append(writer.op(last, "Mul", (value, weight)))
    total, *rest = weighted
    for index, value in enumerate(rest, start=1):
        total = writer.op(name if index == len(rest) else f"{name}/sum_{index}", "Add", (total, value))
    return total


def _linear(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    return _product(writer, node.output, values[0], owned["weight"], owned.get("bias"))


def _phm_linear(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    """Multiply by the sum of Kronecker products; only in graphs that are not in their inference form."""
    (x,), name = values, node.output
    products = writer.op(f"{name}/products", "MatMul", (owned["left"], owned["right"]))
    blocks = writer.op(f"{name}/blocks", "Einsum", (owned["rule"], products), {"equation": "iac,ipq->apcq"})
    rest = writer.integers(f"{name}/rest", [-1])
    shape = writer.op(f"{name}/shape", "Concat", (writer.width(f"{name}/width", x), rest), {"axis": 0})
    return _product(writer, name, x, writer.op(f"{name}/weight", "Reshape", (blocks, shape)), owned["bias"])


def _product(writer: Writer, name: str, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    if bias is None:
        return writer.op(name, "MatMul", (x, weight))
    return writer.op(name, "Add", (writer.op(f"{name}/product", "MatMul", (x, weight)), bias))


def _lookup(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    """Gather rows of a table; of stacked ones [adapters, in, out], each request from its own, which is not copied."""
    name, table = node.output, owned["weight"]
    ids = _as_integers(writer, f"{name}/ids", values[0])
    if writer.rows is None:
        return writer.op(name, "Gather", (table, ids), {"axis": 0}, type=table.type)
    axes = writer.integers(f"{name}/axes", [1, 2])
    row = writer.op(f"{name}/row", "Unsqueeze", (writer.rows, axes))
    token = writer.op(f"{name}/token", "Unsqueeze", (ids, writer.integers(f"{name}/last", [-1])))
    token = writer.op(f"{name}/token_int64", "Cast", (token,), {"to": _INT64.dtype}, type=_INT64)
    shape = writer.op(f"{name}/shape", "Shape", (token,), type=_INT64)
    places = (writer.op(f"{name}/rows", "Expand", (row, shape)), token)
    index = writer.op(f"{name}/index", "Concat", places, {"axis": -1})
    return writer.op(name, "GatherND", (table, index), type=table.type)


def _as_integers(writer: Writer, name: str, ids: ir.Value) -> ir.Value:
    is_integer = ids.dtype is not None and ids.dtype.is_integer()
    return ids if is_integer else writer.op(name, "Cast", (ids,), {"to": _INT64.dtype}, type=_INT64)


def _indices(writer: Writer, name: str, owned: Owned) -> ir.Value:
    base = writer.number(f"{name}/base", INDEX_BASE, owned["high"])
    high = writer.op(f"{name}/high", "Mul", (owned["high"], base))
    return writer.op(f"{name}/indices", "Add", (high, owned["low"]))


def _one_hot(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    """Compare each id with all indices: floats, which are exact up to 2²⁴."""
    name, indices = node.output, _indices(writer, node.output, owned)
    to, kind = {"to": indices.dtype or ir.DataType.FLOAT}, indices.type
    ids = writer.op(f"{name}/ids", "Cast", values, to, type=kind)
    ids = writer.op(f"{name}/column", "Unsqueeze", (ids, writer.integers(f"{name}/last", [-1])))
    equal = writer.op(f"{name}/equal", "Equal", (ids, indices), type=_BOOL)
    return writer.op(name, "Cast", (equal,), to, type=kind)


def _scatter(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    """Add to zeros in place, so that the work is that of the indices; those without a feature add 0 to the first."""
    (x, like), name = values, node.output
    indices = _indices(writer, name, owned)
    whole = writer.op(f"{name}/whole", "Cast", (indices,), {"to": _INT64.dtype}, type=_INT64)
    zero = writer.integers(f"{name}/none", 0)
    again = writer.op(f"{name}/again", "Cast", (whole,), {"to": indices.dtype or ir.DataType.FLOAT}, type=indices.type)
    is_whole = writer.op(f"{name}/is_whole", "Equal", (again, indices), type=_BOOL)
    least = writer.op(f"{name}/at_least", "GreaterOrEqual", (whole, zero), type=_BOOL)
    below = writer.op(f"{name}/below", "Less", (whole, writer.width(f"{name}/width", like)), type=_BOOL)
    within = writer.op(f"{name}/within", "And", (least, below), type=_BOOL)
    is_feature = writer.op(f"{name}/is_feature", "And", (within, is_whole), type=_BOOL)
    place = writer.op(f"{name}/place", "Where", (is_feature, whole, zero), type=_INT64)
    places = writer.op(
        f"{name}/places", "Expand", (place, writer.op(f"{name}/shape", "Shape", (x,), type=_INT64)), type=_INT64
    )
    added = writer.op(f"{name}/added", "Where", (is_feature, x, writer.number(f"{name}/zero", 0.0, x)), type=x.type)
    wide = writer.op(f"{name}/wide", "Shape", (like,), type=_INT64)
    zeros = writer.op(
        f"{name}/zeros", "ConstantOfShape", (wide,), {"value": ir.tensor([0.0], ir.DataType.FLOAT)}, type=x.type
    )
    return writer.op(name, "ScatterElements", (zeros, places, added), {"axis": -1, "reduction": "add"})


def _first_token(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    index = writer.integers(f"{node.output}/index", [0] if writer.stacked else 0)
    return writer.op(node.output, "Gather", (values[0], index), {"axis": -2})


def _mean_pool(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    return _masked_mean(writer, node.output, *values)


def _weighted_mean_pool(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x, mask), name = values, node.output
    places = writer.op(f"{name}/places", "CumSum", (mask, writer.integers(f"{name}/tokens", -1)))
    return _masked_mean(writer, name, x, writer.op(f"{name}/weights", "Mul", (mask, places)))


def _masked_mean(writer: Writer, name: str, x: ir.Value, mask: ir.Value) -> ir.Value:
    """Write one product per row, [1, tokens] @ [tokens, width], which avoids a masked copy of the hidden state."""
    if writer.stacked:  # the mask already is [batch, 1, tokens], and the result is [batch, 1, width]
        total, count = writer.op(f"{name}/product", "MatMul", (mask, x)), writer.sum(f"{name}/count", mask, -1)
    else:
        axis = writer.integers(f"{name}/axis", [1])
        row = writer.op(f"{name}/row", "Unsqueeze", (mask, axis))
        total = writer.op(f"{name}/total", "Squeeze", (writer.op(f"{name}/product", "MatMul", (row, x)), axis))
        count = writer.op(f"{name}/count", "ReduceSum", (mask, axis))
    # a row without tokens is 0 instead of 0/0
    at_least_one = writer.op(f"{name}/at_least_one", "Max", (count, writer.number(f"{name}/one", 1.0, mask)))
    return writer.op(name, "Div", (total, at_least_one))


def _last_token(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    """Gather one token per row by its index, [batch, 1], counted from the left for either padding side."""
    (x, mask), name = values, node.output
    # onnxruntime's ArgMax supports neither booleans nor, on the CPU, float16
    shown = writer.op(
        f"{name}/kept", "Cast", (writer.nonzero(f"{name}/shown", mask),), {"to": _INT32.dtype}, type=_INT32
    )
    # the last of equal maxima is the last shown token
    last = {"axis": -1, "keepdims": int(not writer.stacked), "select_last_index": 1}
    place = writer.op(f"{name}/place", "ArgMax", (shown,), last, type=_INT64)
    token = writer.op(f"{name}/token", "GatherND", (x, place), {"batch_dims": 1})
    if writer.stacked:
        token = writer.op(f"{name}/row", "Unsqueeze", (token, writer.integers(f"{name}/axis", [1])))
    return _unless_empty(writer, name, token, mask)


def _max_pool(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x, mask), name = values, node.output
    if writer.stacked:  # [batch, 1, tokens]
        column = writer.op(f"{name}/column", "Transpose", (mask,), {"perm": [0, 2, 1]})
    else:
        column = writer.op(f"{name}/column", "Unsqueeze", (mask, writer.integers(f"{name}/axis", [2])))
    # -inf loses against every number; a row without tokens becomes 0 below
    shown = (writer.nonzero(f"{name}/shown", column), x, writer.number(f"{name}/lowest", -math.inf, x))
    largest = writer.op(f"{name}/kept", "Where", shown, type=x.type)
    return _unless_empty(writer, name, writer.largest(f"{name}/largest", largest, 1, keep=writer.stacked), mask)


def _unless_empty(writer: Writer, name: str, pooled: ir.Value, mask: ir.Value) -> ir.Value:
    """Write zeros for the rows in which the mask keeps no token."""
    some = writer.nonzero(f"{name}/some", writer.sum(f"{name}/count", mask, -1))
    return writer.op(name, "Where", (some, pooled, writer.number(f"{name}/zero", 0.0, pooled)), type=pooled.type)


def _layer_norm(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    """Write `LayerNormalization`, which takes one weight for all rows, or single steps if each row has its own."""
    (x,), name = values, node.output
    if not writer.stacked or node.parameters["weight"] == BORROWED_WEIGHT:
        inputs = (x, owned["weight"], *([owned["bias"]] if "bias" in owned else []))
        return writer.op(name, "LayerNormalization", inputs, {"epsilon": float(node.attributes["epsilon"])})
    centred = writer.op(f"{name}/centred", "Sub", (x, writer.mean(f"{name}/mean", x, -1)))
    variance = writer.mean(f"{name}/variance", writer.op(f"{name}/square", "Mul", (centred, centred)), -1)
    epsilon = writer.number(f"{name}/epsilon", node.attributes["epsilon"], x)
    root = writer.op(f"{name}/root", "Sqrt", (writer.op(f"{name}/shifted", "Add", (variance, epsilon)),))
    scaled = writer.op(f"{name}/scaled", "Mul", (writer.op(f"{name}/normal", "Div", (centred, root)), owned["weight"]))
    return writer.op(name, "Add", (scaled, owned["bias"])) if "bias" in owned else scaled


def _rms_norm(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    """Write the nodes that onnxruntime's SimplifiedLayerNormFusion matches; `RMSNormalization` needs opset 23."""
    (x,), name = values, node.output
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


def _scale(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x,), name = values, node.output
    return writer.op(name, "Mul", (x, writer.number(f"{name}/factor", node.attributes["factor"], x)))


def _factors_weighted(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    return writer.op(node.output, "Mul", (values[0], owned["weight"]))


def _keep_half(*, first: bool) -> Write:
    """Select a half; only in graphs outside inference form, which mostly uses zeros in weights instead."""

    def write(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
        (x,), name = values, node.output
        width = writer.op(f"{name}/width", "Squeeze", (writer.width(f"{name}/widths", x),))
        half = writer.op(f"{name}/half", "Div", (width, writer.integers(f"{name}/two", 2)))
        start, step = writer.integers(f"{name}/start", 0), writer.integers(f"{name}/step", 1)
        index = writer.op(f"{name}/index", "Range", (start, width, step))
        in_first = writer.op(f"{name}/kept", "Less", (index, half), type=_BOOL)
        zero = writer.number(f"{name}/zero", 0, x)
        return writer.op(name, "Where", (in_first, x, zero) if first else (in_first, zero, x), type=x.type)

    return write


def _gate(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    x, gate = values
    writer.check_three_axes(node, x)
    return writer.op(node.output, "Mul", (x, writer.mean(f"{node.output}/mean", gate, -2)))


def _gelu(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    """Write `Gelu` from opset 20 on; before, the nodes that onnxruntime's GeluFusion matches."""
    (x,), name = values, node.output
    if writer.opset >= _GELU_OPSET:
        return writer.op(name, "Gelu", (x,))
    scaled = writer.op(f"{name}/scaled", "Div", (x, writer.number(f"{name}/sqrt_2", math.sqrt(2), x)))
    return _half_of_x_times_one_plus(writer, name, x, writer.op(f"{name}/erf", "Erf", (scaled,)))


def _gelu_tanh(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x,), name = values, node.output
    if writer.opset >= _GELU_OPSET:
        return writer.op(name, "Gelu", (x,), {"approximate": "tanh"})
    square = writer.op(f"{name}/square", "Mul", (x, x))
    # the coefficient of the tanh approximation (Hendrycks & Gimpel 2016, §2)
    cubic = writer.op(f"{name}/cubic", "Mul", (square, writer.number(f"{name}/coefficient", 0.044715, x)))
    factor = writer.op(f"{name}/factor", "Add", (cubic, writer.number(f"{name}/unit", 1.0, x)))
    inner = writer.op(f"{name}/inner", "Mul", (x, factor))
    root = writer.number(f"{name}/sqrt_2_over_pi", math.sqrt(2 / math.pi), x)
    scaled = writer.op(f"{name}/scaled", "Mul", (inner, root))
    return _half_of_x_times_one_plus(writer, name, x, writer.op(f"{name}/tanh", "Tanh", (scaled,)))


def _half_of_x_times_one_plus(writer: Writer, name: str, x: ir.Value, value: ir.Value) -> ir.Value:
    shifted = writer.op(f"{name}/shifted", "Add", (value, writer.number(f"{name}/one", 1.0, x)))
    doubled = writer.op(f"{name}/doubled", "Mul", (x, shifted))
    return writer.op(name, "Mul", (doubled, writer.number(f"{name}/half", 0.5, x)))


def _silu(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x,) = values
    return writer.op(node.output, "Mul", (x, writer.op(f"{node.output}/gate", "Sigmoid", (x,))))


def _quick_gelu(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x,), name = values, node.output
    # the factor of the sigmoid approximation (Hendrycks & Gimpel 2016, §2)
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


def _log_relu(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    """Write the steps of log(1 + max(x, 0)): ONNX has no `Log1p`, and close to 0 the sum rounds to within 6e-8."""
    name = node.output
    positive = writer.op(f"{name}/positive", "Relu", values)
    return writer.op(
        name, "Log", (writer.op(f"{name}/plus_one", "Add", (positive, writer.number(f"{name}/one", 1, positive))),)
    )


def _mish(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    """Write the steps of Mish: ONNX has `Mish` from opset 18 on, but onnxruntime has no kernel for it."""
    (x,), name = values, node.output
    softplus = writer.op(f"{name}/softplus", "Softplus", (x,))
    return writer.op(name, "Mul", (x, writer.op(f"{name}/gate", "Tanh", (softplus,))))


_WRITE: Mapping[str, Write] = {
    "linear": _linear,
    "phm_linear": _phm_linear,
    "lookup": _lookup,
    "one_hot": _one_hot,
    "scatter": _scatter,
    "relu": single_operator("Relu"),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "silu": _silu,
    "tanh": single_operator("Tanh"),
    "sigmoid": single_operator("Sigmoid"),
    "leaky_relu": _leaky_relu,
    "relu6": _relu6,
    "relu_squared": _relu_squared,
    "log_relu": _log_relu,
    "mish": _mish,
    "elu": single_operator("Elu"),
    "identity": nothing,
    "scale": _scale,
    "learned_scale": _factors_weighted,
    "scale_features": _factors_weighted,
    "keep_first_half": _keep_half(first=True),
    "keep_second_half": _keep_half(first=False),
    "gate": _gate,
    "dropout": nothing,
    "drop_path": nothing,
    "add": single_operator("Add"),
    "multiply": single_operator("Mul"),
    "dot": _dot,
    "mix": _mix,
    "softmax_mix": _softmax_mix,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "l2_normalise": _l2_normalise,
    "first_token": _first_token,
    "mean_pool": _mean_pool,
    "last_token": _last_token,
    "max_pool": _max_pool,
    "weighted_mean_pool": _weighted_mean_pool,
}


def emit(graph: AdapterGraph, inputs: Owned, parameters: Owned, writer: Writer) -> ir.Value:
    """Write an adapter graph, ideally in its `inference_form`, as ONNX nodes; training-only ops write nothing.

    Args:
        graph: the graph.
        inputs: the ONNX value of each site value that the graph reads; in a head, `mask` as floating-point numbers.
        parameters: the ONNX value of each parameter, [in, out] for weights, which feed their `MatMul` unchanged.
        writer: writes the nodes under its prefix.

    Returns:
        The value of the graph's result; one of `inputs` if the graph computes nothing.
    """
    return interpret(graph, lowerings(writer), inputs, parameters)[graph.result]


def lowerings(writer: Writer) -> Mapping[str, Lowering[ir.Value]]:
    """Return the lowering of each op with this writer."""
    return {op: partial(write, writer) for op, write in _WRITE.items()}
