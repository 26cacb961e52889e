"""Simulate the rounding of other machines: change a base's norms and biases by a few units in the last place.

Other processors and releases sum in a different order, so the last bits differ. If a base quantizes its activations,
such a difference occasionally moves a value by a whole step. Runs of disturbed graphs sample the results of other
machines.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adapter_export.safe_io.regular_files import map_bytes

_UNITS = {ir.DataType.FLOAT: 4.0, ir.DataType.DOUBLE: 4.0, ir.DataType.FLOAT16: 1.0}
"""Change of an element in units in the last place, by type: about the difference between kernels of one operation.
float16 kernels sum in float32 and round once."""


def disturbed(model: ir.Model, folder: Path, unchanged: Collection[str], seed: int) -> ir.Model:
    """Return a copy of a graph with errors of random sign in its constant float vectors.

    Args:
        model: the graph; it is not changed.
        folder: the folder with its external tensors.
        unchanged: initializers that keep their values.
        seed: seed of the signs.
    """
    copy, rng = model.clone(), np.random.default_rng(seed)
    for graph in copy.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if name not in unchanged and tensor is not None and _is_vector(tensor):
                array = _values(tensor, folder)
                step = _UNITS[tensor.dtype] * float(np.finfo(array.dtype).eps) * rng.choice((-1.0, 1.0), array.shape)
                value.const_value = ir.Tensor((array * (1 + step)).astype(array.dtype), name=name)
    return copy


def _is_vector(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in _UNITS and len(tensor.shape) == 1 and tensor.size > 1


def _values(tensor: ir.TensorProtocol, folder: Path) -> np.ndarray:
    """Return the elements of a tensor; onnx_ir rejects hard links, which a bundle's weights may be."""
    if isinstance(tensor, ir.ExternalTensor):
        with map_bytes(folder / str(tensor.location)) as mapped:
            return np.frombuffer(mapped, tensor.dtype.numpy(), tensor.size, tensor.offset or 0).copy()
    return tensor.numpy()
