"""The floating-point types that tensors of adapters may have, and their names in each file format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

Stored = Literal["float32", "float16", "uint8"]
"""What a base rounds its activations to."""

ROUNDING_STEPS: dict[Stored, float] = {
    "float32": FLOAT_TYPES["float32"].epsilon,
    "float16": FLOAT_TYPES["float16"].epsilon,
    "uint8": 2 / 255,
}
"""The distance between neighbours, as a part of the largest value: 8 bits cut a range of at most twice that."""
