"""Where the nodes of adapters get their tensors from, and how the base's values come to them and go back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import onnx_ir as ir

from adapter_export.onnx.graft import Graft
from adapter_export.onnx.head_outputs import HeadSum
from adapter_export.onnx.lowering import Writer
from adapter_export.onnx.slots import Part


class Supply(Protocol):
    """One way of putting adapters into a graph.

    Attributes:
        stacked: whether the tensors have an axis of adapters before their own: [adapters, in, out] for weights, and
            [adapters, 1, width] for vectors. A head then keeps the axis of the tokens, with length 1.
    """

    stacked: bool

    def parameters(self, part: Part, writer: Writer, /) -> Mapping[str, ir.Value]:
        """The tensors of a part, by parameter."""
        ...

    def enter(self, value: ir.Value, name: str, writer: Writer, /, *, turned: bool = False) -> ir.Value:
        """A value [batch, tokens, width] of the base as the adapter's nodes read it; `turned`: tokens before batch."""
        ...

    def leave(self, result: ir.Value, like: ir.Value, writer: Writer, /, *, turned: bool = False) -> ir.Value:
        """What the adapter's nodes computed in the place of a value of the base, in that value's shape."""
        ...

    def mask(self, mask: ir.Value, writer: Writer, /) -> ir.Value:
        """The attention mask as numbers [batch, tokens] as the nodes of heads read it."""
        ...

    def head(self, head: HeadSum, result: ir.Value, writer: Writer, /) -> ir.Value:
        """What the heads of one output computed, in the shape of that output."""
        ...


class SlotSupply:
    """Slots: inputs of the graph that are initializers as well, for one adapter at a time."""

    stacked = False

    def __init__(self, graft: Graft) -> None:
        self._graft = graft
        self._shared: dict[str, ir.Value] = {}

    def parameters(self, part: Part, _writer: Writer, /) -> Mapping[str, ir.Value]:
        """The slots of a part; what several sites share is registered once."""
        neutral = part.neutral()
        slots = {}
        for record in part.records():
            if record.name in self._shared:
                slots[record.parameter] = self._shared[record.name]
                continue
            shape = ir.Shape([part.axis_name(axis, record.parameter) for axis in record.axes])
            tensor = ir.Tensor(neutral[record.parameter], name=record.name)
            slots[record.parameter] = self._graft.add_slot(record.name, shape, tensor)
            if record.parameter in part.graph.shared:
                self._shared[record.name] = slots[record.parameter]
        return slots

    def enter(self, value: ir.Value, _name: str, _writer: Writer, /, *, turned: bool = False) -> ir.Value:  # noqa: ARG002
        """As it is."""
        return value

    def leave(self, result: ir.Value, _like: ir.Value, _writer: Writer, /, *, turned: bool = False) -> ir.Value:  # noqa: ARG002
        """As it is."""
        return result

    def mask(self, mask: ir.Value, _writer: Writer, /) -> ir.Value:
        """As it is."""
        return mask

    def head(self, _head: HeadSum, result: ir.Value, _writer: Writer, /) -> ir.Value:
        """As it is."""
        return result
