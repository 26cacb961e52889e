"""Sketches: golden data of wide outputs in a size that does not grow with the vocabulary, and inputs made by a formula.

A sketch is a function of an output alone: every program computes that of its own output and compares the two. Each of
its numbers moves by at most the error of one element, or averages the errors of many:

- the largest numbers in order: sorting never moves them further apart than the largest error of an element;
- some elements, spread by a hash;
- sums with random signs over residue classes (Charikar, Chen and Farach-Colton 2002, "Finding frequent items in data
  streams", section 3). Every element is in one sum for each modulus, so a wrong value anywhere shows. The rounding
  errors of n elements, of which the largest reaches the budget, have a root mean square of about a quarter of it, so
  their signed sum is about √n / 4 budgets. Divided by 2 √n, it stays below the budget by eight standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np
import numpy.typing as npt

from adapter_export.format.records import Count, NotEmpty, Positive

Words = npt.NDArray[np.uint32]

_TOP_BIT = np.uint32(31)

_BLOCK = 64
"""Elements of a block, for the largest elements of a row."""

_VALUE_BITS = 8
"""Bits of a filled value: 8 are exact in float16 and bfloat16, too."""

MOST_FILLED = 2**26
"""Maximum number of elements of a filled input: a file of a few bytes must not ask for gigabytes."""


@dataclass(frozen=True)
class SketchRecord:
    """Form of an output in golden data: few numbers for each row instead of all elements.

    A row is an index into the first `axes` axes; it has W elements, the remaining axes flattened. Its sketch consists
    of the `largest` largest elements in descending order, the last repeated if W is smaller; then, for j below
    `columns`, the element mix(row * `columns` + j) mod W; then, for the t-th modulus m and each residue b below m, the
    sum over all elements c with c mod m = b of ±element / (2 √⌈W/m⌉), negative if the top bit of mix(mix(t + 1) + c)
    is set. Rows are numbered in row-major order. mix is a hash of unsigned 32-bit integers: x ^= x >> 16;
    x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16.

    Attributes:
        axes: number of leading axes that the sketch keeps.
        largest: number of largest elements.
        columns: number of other elements.
        moduli: sizes of the groups of signed sums.
    """

    axes: Positive
    largest: Count
    columns: Count
    moduli: Annotated[tuple[Positive, ...], NotEmpty()]

    @property
    def width(self) -> int:
        """Numbers for each row."""
        return self.largest + self.columns + sum(self.moduli)

    def shape_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the sketch of an output of this shape."""
        return (*shape[: self.axes], self.width)

    def of(self, output: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Return the sketch of an output [*rows, …] as [*rows, `width`]."""
        rows = output.reshape(math.prod(output.shape[: self.axes]), -1)
        sketch = np.empty((len(rows), self.width), np.float32)
        for at, row in enumerate(rows):  # one row at a time stays in the processor's cache
            start = 0
            for part in self._parts(at, row):
                sketch[at, start : start + len(part)] = part
                start += len(part)
        return sketch.reshape(self.shape_of(output.shape))

    def _parts(self, at: int, row: npt.NDArray[np.floating]) -> Iterator[npt.NDArray[np.floating]]:
        """Yield the largest elements, the sampled ones, and the signed sums of one row."""
        size = len(row)
        if self.largest:
            largest = _largest(row, self.largest)
            yield np.pad(largest, (0, self.largest - len(largest)), "edge")
        if self.columns:
            numbers = np.arange(at * self.columns, (at + 1) * self.columns, dtype=np.uint64).astype(np.uint32)
            yield row[mix(numbers) % np.uint32(size)]
        for turn, modulus in enumerate(self.moduli):
            padded = np.zeros(-(-size // modulus) * modulus)
            np.multiply(row, _signs(turn, size), out=padded[:size])
            yield padded.reshape(-1, modulus).sum(0) / (2 * math.sqrt(len(padded) // modulus))


def _largest(row: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.floating]:
    """Return the `count` largest elements in descending order, as many as there are, after NaN.

    Only the blocks with the largest maxima can contain them, so the others are not partitioned.
    """
    whole = len(row) // _BLOCK
    if whole > count:
        blocks = row[: whole * _BLOCK].reshape(whole, _BLOCK)
        highest = np.argpartition(blocks.max(1), -count)[-count:]
        row = np.concatenate([blocks[highest].ravel(), row[whole * _BLOCK :]])
    return np.sort(row if len(row) <= count else np.partition(row, -count)[-count:])[::-1]


def sketched(outputs: Mapping[str, np.ndarray], records: Mapping[str, SketchRecord]) -> dict[str, np.ndarray]:
    """Return outputs by name in the form of golden data: those with a record as sketches, the others unchanged.

    An output with too few axes for its record stays as it is, so that its shape is reported as wrong.
    """
    return {
        name: records[name].of(output) if name in records and output.ndim >= records[name].axes else output
        for name, output in outputs.items()
    }


def filled(seed: int, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[np.floating]:
    """Return the input that a seed describes: multiples of 1/64 in [-2, 2), exact in float16 and wider types.

    Element i, in row-major order, is (mix(seed + i) >> 24) / 64 - 2, with the hash of `SketchRecord`.

    Raises:
        ValueError: the seed has more than 32 bits, the type has no fractions, a length is negative, or the input would
            have more than `MOST_FILLED` elements.
    """
    size = math.prod(shape)
    if not 0 <= seed < 2**32 or min(shape, default=0) < 0 or size > MOST_FILLED or np.dtype(dtype).kind != "f":
        raise ValueError(f"an input of {np.dtype(dtype)} {list(shape)} from the seed {seed}")
    numbers = (np.arange(size, dtype=np.uint64) + np.uint64(seed)).astype(np.uint32)
    steps = mix(numbers) >> np.uint32(32 - _VALUE_BITS)
    # from -2 up to 2 in steps of 1/64, which float16 represents exactly
    return (steps.astype(np.float32) / 64 - 2).astype(dtype).reshape(shape)


def read_fill(stored: np.ndarray, dtype: npt.DTypeLike) -> npt.NDArray[np.floating]:
    """Return the input of a tensor `<case>.fill.<input>`: int64, a seed and the shape.

    Raises:
        ValueError: it has another type or no seed, or as `filled`.
    """
    if stored.dtype != np.int64 or stored.ndim != 1 or not stored.size:
        raise ValueError(f"{stored.dtype} {list(stored.shape)} instead of a seed and a shape")
    seed, *shape = stored.tolist()
    return filled(seed, shape, dtype)


def mix(numbers: Words) -> Words:
    """Return a hash of each number, whose bits depend on all bits of the number (Wellons 2018, `lowbias32`)."""
    numbers = numbers ^ (numbers >> np.uint32(16))
    numbers = numbers * np.uint32(0x7FEB352D)
    numbers = numbers ^ (numbers >> np.uint32(15))
    numbers = numbers * np.uint32(0x846CA68B)
    return numbers ^ (numbers >> np.uint32(16))


@lru_cache(maxsize=16)
def _signs(turn: int, size: int) -> npt.NDArray[np.float64]:
    """Return the signs of a row's elements in the sums of one modulus; the same for all rows and bundles."""
    start = mix(np.array([turn + 1], np.uint32))
    negative = mix((start + np.arange(size, dtype=np.uint32)).astype(np.uint32)) >> _TOP_BIT
    return np.where(negative, -1.0, 1.0)
