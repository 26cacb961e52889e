"""Data types of adapter tensors in memory and in files, and their rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from adapter_export.errors import TensorError

Array = npt.NDArray[np.floating]
"""A floating-point array of any precision and shape."""

Weights = dict[str, npt.NDArray[np.float32]]
"""Tensors by name."""


FLOAT_TYPES = {name: float(np.finfo(name).eps) for name in ("float16", "float32", "float64")}
"""Machine epsilon, the distance from 1 to the next larger number (IEEE 754), by NumPy's name of the type."""

Stored = Literal["float32", "float16", "uint8"]
"""Type of a base's activations."""

ROUNDING_STEPS: dict[Stored, float] = {
    "float32": FLOAT_TYPES["float32"],
    "float16": FLOAT_TYPES["float16"],
    "uint8": 2 / 255,
}
"""Relative distance between neighbouring numbers; 8 bits divide a range of at most twice the largest value."""

AdapterPrecision = Literal["float32", "float16", "int8"]
"""Type of an adapter's tensors in files. In memory they are always float32."""

SCALE = ".scale"
"""Suffix of the name of an int8 tensor's scale."""

_BLOCK_BYTES = 2**24
"""Bytes that are compared at a time."""

_LARGEST = 127
_SCALE_BITS = 17
"""Significant bits of a scale. Its product with a 7-bit integer fits the 24 bits of float32: exact in any language."""

_LEAST_SCALE = 1e-30
"""Smallest scale; a column that would need a smaller one becomes zero."""


def narrowed(tensors: Mapping[str, np.ndarray], precision: AdapterPrecision) -> dict[str, np.ndarray]:
    """Convert float32 tensors to the precision of a file; lossless for results of `widened`.

    In int8, a tensor of two or more axes becomes integers from -127 to 127 and a float32 scale `<name>.scale` of shape
    [1, …, out], one factor per index of the last axis. Tensors of one axis stay float32.

    Raises:
        TensorError: a number exceeds the range of float16, or two tensors would have the same name.
    """
    if precision == "float32":
        return dict(tensors)
    narrow: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if precision == "float16":
            with np.errstate(over="ignore"):
                narrow[name] = tensor.astype(np.float16)
            if not np.isfinite(narrow[name]).all():
                largest = f"{np.abs(tensor).max():.3g}"
                raise TensorError(f"`{name}` exceeds the range of float16", found=largest, expected="at most 65504")
        elif tensor.ndim < 2:
            narrow[name] = tensor
        else:
            if name + SCALE in tensors:
                raise TensorError("two tensors would have the same name", found=f"`{name}{SCALE}`")
            scale = _scale(tensor)
            with np.errstate(divide="ignore", invalid="ignore"):
                steps = np.where(scale > 0, np.rint(tensor / scale), 0)
            narrow[name] = np.clip(steps, -_LARGEST, _LARGEST).astype(np.int8)
            narrow[name + SCALE] = scale.astype(np.float32)
    return narrow


def _scale(tensor: np.ndarray) -> npt.NDArray[np.float64]:
    largest = np.abs(tensor.astype(np.float64)).max(axis=tuple(range(tensor.ndim - 1)), keepdims=True)
    mantissa, exponent = np.frexp(largest / _LARGEST)
    scale = np.ldexp(np.rint(np.ldexp(mantissa, _SCALE_BITS)), exponent - _SCALE_BITS)
    return np.where(scale < _LEAST_SCALE, 0.0, scale)


def widened(tensors: Mapping[str, np.ndarray], where: object = None) -> Weights:
    """Convert the tensors of a file to float32: float16 values, and int8 times its scale, both exact.

    Raises:
        TensorError: an int8 tensor has no scale, or a scale of a wrong type or shape.
    """
    scales = {name + SCALE for name, tensor in tensors.items() if tensor.dtype == np.int8}
    wide: Weights = {}
    for name, tensor in tensors.items():
        if name in scales:
            continue
        if tensor.dtype == np.int8:
            scale, shape = tensors.get(name + SCALE), (1,) * (tensor.ndim - 1) + tensor.shape[-1:]
            if scale is None or scale.dtype != np.float32 or scale.shape != shape:
                raise TensorError(
                    "contains an int8 tensor without its scale",
                    where=where,
                    found=f"`{name}` {list(tensor.shape)}",
                    expected=f"`{name}{SCALE}`, float32 {list(shape)}",
                )
            with np.errstate(over="ignore", invalid="ignore"):  # callers check for NaN and infinity
                wide[name] = tensor.astype(np.float32) * scale
        else:
            wide[name] = tensor.astype(np.float32) if tensor.dtype == np.float16 else tensor
    return wide


def same_bits(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Return whether two arrays are equal in type, shape and all bits; false if one is `None`."""
    if first is None or second is None or (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    first_bytes, second_bytes = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (first, second))
    blocks = range(0, first_bytes.size, _BLOCK_BYTES)  # a mapped weight need not be in memory as a whole
    return all(
        np.array_equal(first_bytes[at : at + _BLOCK_BYTES], second_bytes[at : at + _BLOCK_BYTES]) for at in blocks
    )
