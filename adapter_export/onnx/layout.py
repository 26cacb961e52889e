"""Values of a base with batch and tokens as adapters of a bank take them, and back."""

from __future__ import annotations

import onnx_ir as ir

from adapter_export.onnx.lowering import Writer

_IN_ONE_ROW = 2
"""The axes of a value that has the tokens of all rows on one axis."""

_TURN = {"perm": [1, 0, 2]}


def row_by_row(value: ir.Value, rows: ir.Value, name: str, writer: Writer, *, turned: bool) -> ir.Value:
    """A value as [batch, tokens, width].

    Args:
        value: as the base has it: so, or with batch and tokens on one axis.
        rows: whose first axis is the batch.
        name: what the nodes are called after.
        writer: writes them.
        turned: whether the base has tokens before batch.
    """
    if value.shape is not None and len(value.shape) == _IN_ONE_ROW:
        integer = ir.TensorType(ir.DataType.INT64)
        batch = writer.op(f"{name}/batch", "Shape", (rows,), {"start": 0, "end": 1}, type=integer)
        rest = writer.op(f"{name}/width", "Shape", (value,), {"start": -1}, type=integer)
        tokens = writer.integers(f"{name}/tokens", [-1])
        leading = (tokens, batch) if turned else (batch, tokens)
        shape = writer.op(f"{name}/shape", "Concat", (*leading, rest), {"axis": 0})
        value = writer.op(f"{name}/rows", "Reshape", (value, shape))
    return writer.op(f"{name}/turned", "Transpose", (value,), _TURN) if turned else value


def as_before(result: ir.Value, like: ir.Value, writer: Writer, *, turned: bool) -> ir.Value:
    """A result [batch, tokens, width] in the order and the shape of the base's value that it stands for."""
    if turned:
        result = writer.op(f"{like.name}/turned_back", "Transpose", (result,), _TURN)
    if like.shape is None or len(like.shape) != _IN_ONE_ROW:
        return result
    shape = writer.op(f"{like.name}/shape", "Shape", (like,), type=ir.TensorType(ir.DataType.INT64))
    return writer.op(f"{like.name}/flat", "Reshape", (result, shape))
