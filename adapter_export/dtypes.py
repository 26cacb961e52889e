"""The floating-point types that tensors of adapters may have, and how they round."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
"""A floating-point array of any precision and shape."""

Weights = dict[str, npt.NDArray[np.float32]]
"""Tensors by name."""


FLOAT_TYPES = {name: float(np.finfo(name).eps) for name in ("float16", "float32", "float64")}
"""By NumPy's names, the distance from 1 to the next larger number (IEEE 754)."""

Stored = Literal["float32", "float16", "uint8"]
"""What a base rounds its activations to."""

ROUNDING_STEPS: dict[Stored, float] = {
    "float32": FLOAT_TYPES["float32"],
    "float16": FLOAT_TYPES["float16"],
    "uint8": 2 / 255,
}
"""The distance between neighbours, as a part of the largest value: 8 bits cut a range of at most twice that."""
