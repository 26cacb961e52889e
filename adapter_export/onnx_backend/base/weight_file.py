"""Weight file of a rewritten base, written one tensor at a time, so that the base is never in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import onnx_ir as ir

from adapter_export.onnx_backend.base.external import EMBEDDED_BYTES, in_memory, readable

_PART_BYTES = 16 * 2**20
"""Bytes of a tensor that are converted and written at once."""


def is_embedded(tensor: ir.TensorProtocol) -> bool:
    """Return whether a tensor is stored in the graph's file."""
    return tensor.dtype == ir.DataType.STRING or tensor.nbytes <= EMBEDDED_BYTES


def array_of(tensor: ir.TensorProtocol) -> np.ndarray:
    """Return the elements of a tensor; external ones are memory-mapped until the array is dropped."""
    return np.asarray(readable(tensor).numpy())


def rows_of(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array in parts along its first axis, each of about 16 MiB."""
    if array.ndim and array.size:
        yield from (array[part] for part in _slices(array, 0))
    else:
        yield array


def columns_of(matrix: np.ndarray) -> Iterator[slice]:
    """Yield slices of the columns of a matrix, each of about 16 MiB."""
    return _slices(matrix, 1)


def _slices(array: np.ndarray, axis: int) -> Iterator[slice]:
    length = array.shape[axis]
    step = max(1, length * _PART_BYTES // max(1, array.nbytes))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def register(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Make a tensor an initializer of a graph under its own name, which must be new."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


class WeightFile:
    """Context manager that appends tensors to the weight file of a base; small ones stay in the graph's file.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
        """Write an array, and make it an initializer of a graph."""
        return register(graph, self.write(name, ir.DataType.from_numpy(array.dtype), array.shape, rows_of(array)))

    def write(
        self, name: str, dtype: ir.DataType, shape: Sequence[int], parts: Iterable[np.ndarray]
    ) -> ir.TensorProtocol:
        """Write a tensor, in parts along its first axis, and return it."""
        if dtype.itemsize * math.prod(shape) <= EMBEDDED_BYTES:
            return ir.Tensor(
                np.concatenate([part.reshape(-1) for part in parts]).reshape(shape), dtype=dtype, name=name
            )
        start = self._file.tell()
        for part in parts:
            self._file.write(part.tobytes())
        place = (self._path.name, start, self._file.tell() - start, dtype)
        return ir.ExternalTensor(*place, shape=ir.Shape(shape), name=name, base_dir=self._path.parent)

    def move(self, model: ir.Model) -> None:
        """Write the large tensors of a model that are not in this file yet, and make its values refer to them."""
        for graph in model.graphs():
            for name, value in graph.initializers.items():
                tensor = value.const_value
                if tensor is not None and not self._contains(tensor):
                    value.const_value = self._move_tensor(name, tensor)

    def _contains(self, tensor: ir.TensorProtocol) -> bool:
        return isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) == self._path

    def _move_tensor(self, name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if is_embedded(tensor):
            return in_memory(tensor)
        is_packed = tensor.dtype.itemsize < 1  # NumPy has no such types
        whole = np.frombuffer(readable(tensor).tobytes(), np.uint8) if is_packed else array_of(tensor)
        return self.write(name, tensor.dtype, tuple(tensor.shape.numpy()), rows_of(whole))
