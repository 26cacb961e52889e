"""Distances between two vectors of finite numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_LARGEST = float(np.finfo(np.float64).max)


def absolute_difference(found: np.ndarray, expected: np.ndarray) -> npt.NDArray[np.float64 | np.uint64]:
    """|found − expected| per element; float64 for floats, uint64 for integers, where no difference wraps around.

    A difference of two float64 that is beyond their range comes back as the largest float64.
    """
    if expected.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.minimum(np.abs(found.astype(np.float64) - expected.astype(np.float64)), _LARGEST)
    kind = np.uint64 if expected.dtype.kind in "ub" else np.int64
    first, second = (side.astype(kind) for side in (found, expected))
    high, low = np.maximum(first, second), np.minimum(first, second)
    return high.view(np.uint64) - low.view(np.uint64)  # modulo 2^64, which is exact as no difference reaches it


def relative_difference(found: np.ndarray, expected: np.ndarray) -> npt.NDArray[np.float64]:
    """|found − expected| / max(|found|, |expected|) per element, in [0, 2]; 0 where both are 0."""
    size = np.maximum(np.abs(found.astype(np.float64)), np.abs(expected.astype(np.float64)))
    difference = absolute_difference(found, expected).astype(np.float64)
    return np.divide(difference, size, out=np.zeros_like(size), where=size > 0)


def ulp_distance(found: np.ndarray, expected: np.ndarray) -> npt.NDArray[np.uint64]:
    """How many steps between neighbouring numbers of the type lie between two floats, per element.

    Counted across zero, where +0 and −0 are one number. IEEE 754 numbers of one sign are ordered as their bits are.
    """
    (first_negative, first), (second_negative, second) = _sign_and_size(found), _sign_and_size(expected)
    apart = np.maximum(first, second) - np.minimum(first, second)
    return np.where(first_negative == second_negative, apart, first + second)


def _sign_and_size(values: np.ndarray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint64]]:
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    sign = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    return (bits & sign) != 0, (bits & ~sign).astype(np.uint64)


def cosine(found: np.ndarray, expected: np.ndarray) -> float | None:
    """The cosine of the angle between two vectors, in float64; none if one of them is zero or empty.

    Both are first divided by a power of two near their largest element, so that no square overflows or vanishes.
    """
    first, second = _unit_scale(found), _unit_scale(expected)
    if first is None or second is None:
        return None
    length = float(np.sqrt(first @ first) * np.sqrt(second @ second))
    return float(np.clip((first @ second) / length, -1.0, 1.0))


def _unit_scale(values: np.ndarray) -> npt.NDArray[np.float64] | None:
    wide = values.astype(np.float64)
    largest = float(np.abs(wide).max(initial=0.0))
    return np.ldexp(wide, -np.frexp(largest)[1]) if largest else None
