"""From one value per token to one per row."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from adapter_export.graph.graph import Node
from adapter_export.onnx.lowering.writer import Owned, Values, Write, Writer


def _first_token(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    index = writer.integers(f"{node.output}/index", [0] if writer.stacked else 0)
    return writer.op(node.output, "Gather", (values[0], index), {"axis": -2})


def _mean_pool(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    """As one product per row, [1, tokens] @ [tokens, width]: no masked copy of the hidden state is made."""
    x, mask = values
    name = node.output
    if writer.stacked:
        return _mean_of_rows(writer, name, x, mask)
    axis = writer.integers(f"{name}/axis", [1])
    row = writer.op(f"{name}/row", "Unsqueeze", (mask, axis))
    total = writer.op(f"{name}/total", "Squeeze", (writer.op(f"{name}/product", "MatMul", (row, x)), axis))
    count = writer.op(f"{name}/count", "ReduceSum", (mask, axis))
    at_least_one = writer.op(f"{name}/at_least_one", "Max", (count, writer.number(f"{name}/one", 1.0, mask)))
    return writer.op(name, "Div", (total, at_least_one))


def _mean_of_rows(writer: Writer, name: str, x: ir.Value, row: ir.Value) -> ir.Value:
    """The same with a mask [batch, 1, tokens], giving [batch, 1, width]."""
    count = writer.sum(f"{name}/count", row, -1)
    at_least_one = writer.op(f"{name}/at_least_one", "Max", (count, writer.number(f"{name}/one", 1.0, row)))
    return writer.op(name, "Div", (writer.op(f"{name}/product", "MatMul", (row, x)), at_least_one))


WRITE: Mapping[str, Write] = {"first_token": _first_token, "mean_pool": _mean_pool}
