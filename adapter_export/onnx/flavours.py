"""Other forms of a graph with slots: every slot a required input, or one adapter as constants."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import Weights


def with_required_inputs(model: ir.Model, slots: Iterable[str]) -> ir.Model:
    """A copy in which every slot is an input without a default.

    For bindings that cannot override an initializer, and for providers that fold it.
    """
    copy = model.clone()
    for name in slots:
        copy.graph.initializers.pop(name).const_value = None
    return copy


def baked(model: ir.Model, tensors: Weights) -> ir.Model:
    """A copy in which every slot is a constant with an adapter's tensor, so that ONNX Runtime may fold it."""
    copy = model.clone()
    for name, tensor in tensors.items():
        slot = copy.graph.initializers[name]
        slot.const_value = ir.Tensor(np.ascontiguousarray(tensor), name=name)
        slot.shape = ir.Shape(tensor.shape)
        copy.graph.inputs.remove(slot)
    return copy
