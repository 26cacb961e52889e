"""Put trained keys and values before the caches of a decoder's graph.

The graph of the base reads longer caches and a longer mask than it is fed, as if the prefix were a past. It returns the
caches without the prefix, so that programs feed and keep them as without it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from adapter_export.format.axes import names
from adapter_export.format.manifest import InputRecord
from adapter_export.onnx_backend.onnx_lowering import Writer
from adapter_export.onnx_backend.rewrite.surgery import GraphRewrite

_INT64 = ir.TensorType(ir.DataType.INT64)
_FLOAT = ir.TensorType(ir.DataType.FLOAT)
_END = int(np.iinfo(np.int64).max)


class PastRewrite:
    """State of one change of a graph.

    Args:
        rewrite: the graph.
        writer: writes the nodes.
        length: tokens of the prefix, [1], or of each row, [batch, 1, 1]. Rows with shorter prefixes have hidden tokens
            after them.
        by_row: whether tensors have a batch.
    """

    def __init__(self, rewrite: GraphRewrite, writer: Writer, length: ir.Value, by_row: bool) -> None:
        self._rewrite, self._writer, self._by_row = rewrite, writer, by_row
        most = writer.op("most", "ReduceMax", (length,), {"keepdims": 0})
        scalar = writer.op("tokens", "Cast", (most,), {"to": ir.DataType.INT64}, type=_INT64)
        self._scalar, self._end = scalar, writer.op("end", "Reshape", (scalar, writer.integers("end/shape", [1])))
        self._lengths = writer.op("lengths", "Reshape", (length, writer.integers("lengths/shape", [-1, 1])))
        self._batch: ir.Value | None = None
        self._changed: list[tuple[ir.Value, ir.Value]] = []
        self._outputs: list[tuple[ir.Value, ir.Value]] = []
        self._grown: set[str] = set()

    def prepend(self, record: InputRecord, axis: int, tensor: ir.Value) -> None:
        """Put a tensor before a cache, along its axis of tokens."""
        writer, name, cache = self._writer, record.name, self._rewrite.value(record.name)
        at = axis if self._by_row else axis - 1
        prefix = self._slice(f"{name}/real", tensor, writer.integers(f"{name}/start", [0]), self._end, at)
        if not self._by_row:
            prefix = writer.op(f"{name}/row", "Unsqueeze", (prefix, writer.integers(f"{name}/first", [0])))
            ones = writer.integers(f"{name}/ones", [1] * (len(record.axes) - 1))
            shape = writer.op(f"{name}/shape", "Concat", (self._rows(cache), ones), {"axis": 0}, type=_INT64)
            prefix = writer.op(f"{name}/rows", "Expand", (prefix, shape))
        if cache.dtype not in (None, prefix.dtype):
            prefix = writer.op(f"{name}/cast", "Cast", (prefix,), {"to": cache.dtype}, type=cache.type)
        whole = writer.op(f"{name}/whole", "Concat", (prefix, cache), {"axis": axis}, type=cache.type)
        whole.shape = _unnamed(cache.shape, {axis})
        self._changed.append((cache, whole))
        self._grown |= set(names(record.axes[axis]))
        following = self._rewrite.value(str(record.next))
        cut = self._slice(f"{name}/next", following, self._end, writer.integers(f"{name}/last", [_END]), axis)
        cut.shape = following.shape
        self._outputs.append((following, cut))

    def finish(self, mask: InputRecord) -> None:
        """Extend the mask, and redirect the nodes of the base to the longer values."""
        old = self._rewrite.value(mask.name)
        self._changed.append((old, self._longer_mask(old)))
        nodes = list(self._writer.tape.nodes)
        (first, whole), *others = self._changed
        self._rewrite.replace(first, whole, nodes)
        for value, new in others:
            for node, index in [use for use in value.uses() if use.node not in nodes]:
                node.replace_input_with(index, new)
        for value, cut in self._outputs:
            self._rewrite.replace_output(value, cut, [])
        self._forget_lengths(nodes)

    def _longer_mask(self, mask: ir.Value) -> ir.Value:
        writer = self._writer
        zero, one = (writer.integers(f"mask/{name}", number) for name, number in (("zero", 0), ("one", 1)))
        positions = writer.op("mask/positions", "Range", (zero, self._scalar, one), type=_INT64)
        places = writer.op("mask/places", "Cast", (positions,), {"to": ir.DataType.FLOAT}, type=_FLOAT)
        real = writer.op("mask/real", "Less", (places, self._lengths), type=ir.TensorType(ir.DataType.BOOL))
        kind = mask.dtype or ir.DataType.INT64
        numbers = writer.op("mask/numbers", "Cast", (real,), {"to": kind}, type=ir.TensorType(kind))
        column = writer.integers("mask/column", [1])
        shape = writer.op("mask/shape", "Concat", (self._rows(mask), column), {"axis": 0}, type=_INT64)
        rows = writer.op("mask/rows", "Expand", (numbers, shape))
        whole = writer.op("mask/whole", "Concat", (rows, mask), {"axis": 1}, type=mask.type)
        whole.shape = _unnamed(mask.shape, {1})
        return whole

    def _rows(self, value: ir.Value) -> ir.Value:
        """Return the number of rows of a call, [1]."""
        if self._batch is None:
            self._batch = self._writer.op("batch", "Shape", (value,), {"start": 0, "end": 1}, type=_INT64)
        return self._batch

    def _slice(self, name: str, value: ir.Value, start: ir.Value, end: ir.Value, axis: int) -> ir.Value:
        axes = self._writer.integers(f"{name}/axis", [axis])
        return self._writer.op(name, "Slice", (value, start, end, axes))

    def _forget_lengths(self, nodes: list[ir.Node]) -> None:
        """Remove the lengths of the past from the shapes of values that have become longer.

        ONNX Runtime reuses the memory of values of equal shapes.
        """
        outputs = {*self._rewrite.model.graph.outputs}
        for node in self._rewrite.model.graph:
            for value in () if node in nodes else node.outputs:
                if value.shape is not None and value not in outputs:
                    grown = {at for at, dim in enumerate(value.shape) if self._is_grown(dim)}
                    value.shape = _unnamed(value.shape, grown)

    def _is_grown(self, dim: int | ir.SymbolicDim) -> bool:
        name = None if isinstance(dim, int) else dim.value
        return name is not None and not self._grown.isdisjoint(names(name))


def _unnamed(shape: ir.Shape | None, axes: set[int]) -> ir.Shape | None:
    """Return a shape with unknown lengths along some axes."""
    return None if shape is None else ir.Shape([None if at in axes else dim for at, dim in enumerate(shape)])
