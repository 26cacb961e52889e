"""Graphs that round elsewhere: a base whose norms and biases are off by a few units in the last place.

Another processor or another release adds up in another order, and its last bits differ. In a base that quantises its
activations such a difference now and then moves a value by a whole step. Runs of a disturbed graph are samples of what
other machines give.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adapter_export.safe_io.regular_files import map_bytes

_UNITS = {ir.DataType.FLOAT: 4.0, ir.DataType.DOUBLE: 4.0, ir.DataType.FLOAT16: 1.0}
"""Units in the last place that an element is off, by its type: kernels of one operation differ by about as many.
Those of float16 add up in float32, and round once."""


def disturbed(model: ir.Model, folder: Path, kept: Collection[str], seed: int) -> ir.Model:
    """Return a copy of a graph with errors of random signs in its constant vectors of floats.

    Args:
        model: the graph; it stays as it is.
        folder: with its external tensors.
        kept: initializers that stay as they are.
        seed: of the signs.
    """
    copy, rng = model.clone(), np.random.default_rng(seed)
    for graph in copy.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if name not in kept and tensor is not None and _is_vector(tensor):
                array = _values(tensor, folder)
                step = _UNITS[tensor.dtype] * float(np.finfo(array.dtype).eps) * rng.choice((-1.0, 1.0), array.shape)
                value.const_value = ir.Tensor((array * (1 + step)).astype(array.dtype), name=name)
    return copy


def _is_vector(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in _UNITS and len(tensor.shape) == 1 and tensor.size > 1


def _values(tensor: ir.TensorProtocol, folder: Path) -> np.ndarray:
    """Return the elements of a tensor; onnx_ir refuses a file with hard links, which the weights of a bundle may be."""
    if isinstance(tensor, ir.ExternalTensor):
        with map_bytes(folder / str(tensor.location)) as mapped:
            return np.frombuffer(mapped, tensor.dtype.numpy(), tensor.size, tensor.offset or 0).copy()
    return tensor.numpy()
