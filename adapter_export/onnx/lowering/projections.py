"""Products with weights."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from adapter_export.graph.graph import Node
from adapter_export.onnx.lowering.writer import Owned, Values, Write, Writer


def _linear(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    (x,) = values
    return _product(writer, node.output, x, owned["weight"], owned.get("bias"))


def _phm_linear(writer: Writer, node: Node, values: Values, owned: Owned) -> ir.Value:
    """For graphs that are not in their inference form, where it is a `linear`."""
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


WRITE: Mapping[str, Write] = {"linear": _linear, "phm_linear": _phm_linear}
