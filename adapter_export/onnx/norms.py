"""The norms of an ONNX graph: which kind each is, and the names of its trained tensors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from adapter_export.onnx.fused import is_skip_norm
from adapter_export.sites.site import Norm

NORMS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"})

_WEIGHT = 1
_SKIP_WEIGHT = 2
"""The input with the factor; that of a layer norm is followed by its bias."""

_DEFAULT_EPSILON = {"SkipLayerNormalization": 1e-12, "SkipSimplifiedLayerNormalization": 1e-6}


def norm_of(node: ir.Node) -> Norm | None:
    """The norm that a node is or, fused with a sum, has inside; none for any other node."""
    if node.op_type not in NORMS and not is_skip_norm(node):
        return None
    at = _SKIP_WEIGHT if is_skip_norm(node) else _WEIGHT
    is_rms = "LayerNormalization" not in node.op_type or "Simplified" in node.op_type
    tensors = [node.inputs[i] if i < len(node.inputs) else None for i in ((at,) if is_rms else (at, at + 1))]
    if not _is_over_features(node) or not all(map(_is_trained, tensors)):
        return Norm("unknown", 0.0, None, None)
    stored = node.attributes.get_float("epsilon", _DEFAULT_EPSILON.get(node.op_type, 1e-5))
    epsilon = float(str(np.float32(stored)))  # as it was written: float32 holds 1e-12 as 9.99999996e-13
    weight, bias = (*(None if tensor is None else tensor.name for tensor in tensors), None)[:2]
    return Norm("rms" if is_rms else "layer", epsilon, weight, bias)


def _is_over_features(node: ir.Node) -> bool:
    """Whether it normalises over the last axis alone; the shape of its input says which axis that is."""
    axis = node.attributes.get_int("axis", -1)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _is_trained(value: ir.Value | None) -> bool:
    return value is None or (value.is_initializer() and not value.is_graph_input()) or value.const_value is not None
