"""The floating-point types that tensors of adapters may have, and their names in each file format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
"""A floating-point array of any precision and shape."""

Weights = dict[str, npt.NDArray[np.float32]]
"""Tensors by name."""


@dataclass(frozen=True)
class FloatType:
    """One floating-point type.

    Attributes:
        name: NumPy's name for it.
        safetensors: the code in a safetensors header.
        epsilon: the distance from 1 to the next larger number (IEEE 754).
    """

    name: str
    safetensors: str
    epsilon: float


FLOAT_TYPES = {
    name: FloatType(name, code, float(np.finfo(name).eps))
    for name, code in (("float16", "F16"), ("float32", "F32"), ("float64", "F64"))
}
