"""Writing named ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from adapter_export.graph.graph import Node
from adapter_export.graph.op_check import check_three_axes

MINIMUM_OPSET = 17
"""The first opset with `LayerNormalization`."""

_REDUCE_AXES_OPSET = 18
"""From here on, the axes of `ReduceMean` are an input; those of `ReduceSum` are one in all opsets that are written."""

Values = tuple[ir.Value, ...]
Owned = Mapping[str, ir.Value]
Attributes = Mapping[str, float | str | list[int]]


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
        stacked: whether the adapter's tensors have an axis of adapters before their own, [adapters, in, out] and
            [adapters, 1, width], so that each row of the batch has those of its adapter. A value of one row then keeps
            the axis of the tokens, with length 1; a mask is [batch, 1, tokens].
    """

    tape: ir.tape.Tape
    prefix: str
    opset: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    stacked: bool = False

    def op(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Attributes | None = None,
        type: ir.TypeProtocol | None = None,
    ) -> ir.Value:
        """Write one node whose output has the type of its first input, unless another is given."""
        full_name = f"{self.prefix}/{name}"
        output = ir.Value(name=full_name, type=type or inputs[0].type)
        return self.tape.op(
            op_type, inputs, attributes, name=full_name, output=output, metadata_props=dict(self.metadata)
        )

    def number(self, name: str, value: float, like: ir.Value) -> ir.Value:
        """Write a scalar of the type of `like`; float32, the type of every adapter tensor, where that is unknown."""
        return self._constant(name, ir.tensor(value, dtype=like.dtype or ir.DataType.FLOAT))

    def integers(self, name: str, value: int | Sequence[int]) -> ir.Value:
        """Write an index or a list of axes."""
        return self._constant(name, ir.tensor(value, dtype=ir.DataType.INT64))

    def mean(self, name: str, x: ir.Value, axis: int) -> ir.Value:
        """Write the mean over one axis, which stays with length 1."""
        if self.opset < _REDUCE_AXES_OPSET:
            return self.op(name, "ReduceMean", (x,), {"axes": [axis], "keepdims": 1})
        return self.op(name, "ReduceMean", (x, self.integers(f"{name}/axis", [axis])), {"keepdims": 1})

    def sum(self, name: str, x: ir.Value, axis: int) -> ir.Value:
        """Write the sum over one axis, which stays with length 1."""
        return self.op(name, "ReduceSum", (x, self.integers(f"{name}/axis", [axis])), {"keepdims": 1})

    def check_three_axes(self, node: Node, x: ir.Value) -> None:
        """Refuse a value that is known to have its rows and tokens on one axis; raises `GraphError`."""
        check_three_axes(node.op, node.output, None if x.shape is None else len(x.shape))

    def width(self, name: str, x: ir.Value) -> ir.Value:
        """Write the length of the last axis, as a list of one integer."""
        return self.op(name, "Shape", (x,), {"start": -1}, type=ir.TensorType(ir.DataType.INT64))

    def _constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        full_name = f"{self.prefix}/{name}"
        output = ir.Value(name=full_name, type=ir.TensorType(tensor.dtype))
        return self.tape.op(
            "Constant", (), {"value": tensor}, name=full_name, output=output, metadata_props=dict(self.metadata)
        )


Write = Callable[[Writer, Node, Values, Owned], ir.Value]
"""Writes one op."""


def one(op_type: str) -> Write:
    """An op that ONNX has."""
    return lambda writer, node, values, _owned: writer.op(node.output, op_type, values)


def nothing(_: Writer, __: Node, values: Values, ___: Owned) -> ir.Value:
    """An op that does nothing at inference."""
    return values[0]
