"""Tensors of a base by the names that its exporter gave them, which are those in the torch model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.onnx_backend.base.base import OnnxBase
from adapter_export.onnx_backend.base.external import readable


def named_tensor(base: OnnxBase, name: str) -> np.ndarray | None:
    """A floating-point tensor of the base, a matrix as torch's `Linear` holds it, [out, in].

    Returns:
        The tensor; none where the base has none of this name, or where it is not clear which axis is which.
    """
    value = base.model.graph.initializers.get(name)
    if value is None or value.const_value is None:
        return None
    tensor = readable(value.const_value).numpy()
    if tensor.dtype.name not in FLOAT_TYPES:
        return None
    if tensor.ndim != 2:
        return tensor
    layouts = {_reads_in_first(node, index) for node, index in value.uses()}
    return None if len(layouts) != 1 or None in layouts else tensor.T if layouts == {True} else tensor


def _reads_in_first(node: ir.Node, index: int) -> bool | None:
    """Whether a node reads a matrix as [in, out]; none for one of which it is not known."""
    if node.op_type == "MatMul" and index == 1:
        return True
    if node.op_type == "Gemm" and index == 1:
        transposed = node.attributes.get("transB")
        return transposed is None or not transposed.as_int()
    return False if node.op_type == "Transpose" else None
