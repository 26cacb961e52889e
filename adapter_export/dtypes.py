"""The types that tensors of adapters may have, in memory and in files, and how they round."""

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
"""The type that a base rounds its activations to."""

ROUNDING_STEPS: dict[Stored, float] = {
    "float32": FLOAT_TYPES["float32"],
    "float16": FLOAT_TYPES["float16"],
    "uint8": 2 / 255,
}
"""The distance between neighbours, as a part of the largest value: 8 bits cut a range of at most twice that."""

AdapterPrecision = Literal["float32", "float16", "int8"]
"""The type of an adapter's tensors in files. In memory they are always float32."""

SCALE = ".scale"
"""Suffix of the name of an int8 tensor's scale."""

_LARGEST = 127
_SCALE_BITS = 17
"""A product with an integer of 7 bits then has 24, as many as float32: it is exact, in every language."""

_LEAST_SCALE = 1e-30
"""A column of numbers that need a smaller one becomes zero."""


def narrowed(tensors: Mapping[str, np.ndarray], precision: AdapterPrecision) -> dict[str, np.ndarray]:
    """Return what files of this precision hold of float32 tensors; of a result of `widened`, nothing is lost.

    In int8, tensors of two axes and more are integers from -127 to 127 and, under `<name>.scale`, a float32 factor for
    each number along their last axis, of shape [1, …, out]; those of one axis stay in float32.

    Raises:
        TensorError: a number leaves the range of float16, or two tensors would have one name.
    """
    if precision == "float32":
        return dict(tensors)
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if precision == "float16":
            with np.errstate(over="ignore"):
                found[name] = tensor.astype(np.float16)
            if not np.isfinite(found[name]).all():
                largest = f"{np.abs(tensor).max():.3g}"
                raise TensorError(f"`{name}` leaves the range of float16", found=largest, expected="at most 65504")
        elif tensor.ndim < 2:
            found[name] = tensor
        else:
            if name + SCALE in tensors:
                raise TensorError("two tensors would have one name", found=f"`{name}{SCALE}`")
            scale = _scale(tensor)
            with np.errstate(divide="ignore", invalid="ignore"):
                steps = np.where(scale > 0, np.rint(tensor / scale), 0)
            found[name] = np.clip(steps, -_LARGEST, _LARGEST).astype(np.int8)
            found[name + SCALE] = scale.astype(np.float32)
    return found


def _scale(tensor: np.ndarray) -> npt.NDArray[np.float64]:
    largest = np.abs(tensor.astype(np.float64)).max(axis=tuple(range(tensor.ndim - 1)), keepdims=True)
    mantissa, exponent = np.frexp(largest / _LARGEST)
    scale = np.ldexp(np.rint(np.ldexp(mantissa, _SCALE_BITS)), exponent - _SCALE_BITS)
    return np.where(scale < _LEAST_SCALE, 0.0, scale)


def widened(tensors: Mapping[str, np.ndarray], where: object = None) -> Weights:
    """Return the float32 tensors of a file: float16 as it is, int8 times its scale, both exact.

    Raises:
        TensorError: an int8 tensor has no scale, or one of another type or shape.
    """
    scales = {name + SCALE for name, tensor in tensors.items() if tensor.dtype == np.int8}
    found: Weights = {}
    for name, tensor in tensors.items():
        if name in scales:
            continue
        if tensor.dtype == np.int8:
            scale, shape = tensors.get(name + SCALE), (1,) * (tensor.ndim - 1) + tensor.shape[-1:]
            if scale is None or scale.dtype != np.float32 or scale.shape != shape:
                raise TensorError(
                    "holds integers without their scale",
                    where=where,
                    found=f"`{name}` {list(tensor.shape)}",
                    expected=f"`{name}{SCALE}`, float32 {list(shape)}",
                )
            with np.errstate(over="ignore", invalid="ignore"):  # whoever uses them looks for NaN and infinity
                found[name] = tensor.astype(np.float32) * scale
        else:
            found[name] = tensor.astype(np.float32) if tensor.dtype == np.float16 else tensor
    return found


def same_bits(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Return whether two arrays are equal in type, shape and every bit; false if one is missing."""
    if first is None or second is None:
        return False
    return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
