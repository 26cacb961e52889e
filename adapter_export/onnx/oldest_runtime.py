"""The oldest ONNX Runtime that computes a graph, and computes it right; each rule was tried with released versions."""

from __future__ import annotations

import onnx_ir as ir
import onnxruntime as ort

_TESTED = "1.21"
_NEWEST_TESTED_OPSET = 22
"""The oldest supported runtime, and the newest opset that it knows."""

_BYTES = "1.23"
"""`MatMulNBits` with 8 bits: 1.21 refuses it, 1.22 fails when it runs."""

_BIASED = "1.22"
"""Fused attention with a bias for each row of the batch: 1.21 reads another one, and says nothing."""

_BIAS = {"Attention": 5, "MultiHeadAttention": 5}


def oldest_runtime(model: ir.Model) -> str:
    """The version, such as `1.21`; that of the runtime here for a newer opset than was ever tried with an older one."""
    if model.opset_imports.get("", 0) > _NEWEST_TESTED_OPSET:
        return str(ort.__version__)
    needed = [_TESTED, *(_needed(node) for node in model.graph.all_nodes())]
    return max(needed, key=lambda version: tuple(map(int, version.split("."))))


def _needed(node: ir.Node) -> str:
    if node.op_type == "MatMulNBits" and node.attributes.get_int("bits", 4) > 4:
        return _BYTES
    at = _BIAS.get(node.op_type) if node.domain == "com.microsoft" else None
    has_bias = at is not None and at < len(node.inputs) and node.inputs[at] is not None
    return _BIASED if has_bias else _TESTED
