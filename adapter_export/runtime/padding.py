"""Padding in the arrays of a row: detected by its masks, and removed where it would change the result.

Padding follows the tokens, and exists only where it has no effect: "What may share a call" in
docs/reference/format.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.format.axes import names
from adapter_export.format.manifest import Axis, InputRecord
from adapter_export.runtime.graphs import Arrays

Spans = Mapping[Axis, tuple[int, int, int]]
"""Start and end of the tokens, and length, of each axis."""


@dataclass(frozen=True)
class Origin:
    """Positions of a row's tokens before padding was removed."""

    spans: Spans

    def put_back(self, output: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
        """Return an output with its tokens at their former positions, and 0 at the padding."""
        places = [self.spans.get(axis) for axis in axes]
        if not any(places):
            return output
        # on an axis of fixed length, leading padding was moved after the tokens
        tokens = tuple(slice(None) if place is None else slice(place[1] - place[0]) for place in places)
        shape = [size if place is None else place[2] for size, place in zip(output.shape, places, strict=True)]
        padded = np.zeros(shape, output.dtype)
        padded[tuple(slice(None) if place is None else slice(*place[:2]) for place in places)] = output[tokens]
        return padded


def has_padding(arrays: Mapping[str, np.ndarray], inputs: Sequence[InputRecord]) -> bool:
    """Return whether a mask hides a token."""
    return any(not arrays[record.name].all() for record in _masks(inputs))


def misplaced(arrays: Mapping[str, np.ndarray], inputs: Sequence[InputRecord], row: int, *, may_pad: bool) -> bool:
    """Return whether a row has leading padding, or trailing padding that changes its result."""
    return any(first > 0 or (end < size and not may_pad) for first, end, size in _spans(arrays, inputs, row).values())


def without_padding(arrays: Arrays, inputs: Sequence[InputRecord], *, may_pad: bool) -> tuple[Arrays, Origin | None]:
    """Return the arrays of one row, [1, …], with its tokens first, and trailing padding only if `may_pad`.

    Raises:
        RequestError: padding cannot be removed, since the axis has a fixed length.
    """
    spans = _spans(arrays, inputs, 0)
    moved = {axis: span for axis, span in spans.items() if span[0] > 0 or (span[1] < span[2] and not may_pad)}
    if not moved:
        return arrays, None
    fixed = [axis for axis, (first, end, size) in moved.items() if isinstance(axis, int) and end - first < size]
    if fixed and not may_pad:
        raise RequestError(
            "a row has padding that changes its result, and the base has a fixed length",
            found=f"{moved[fixed[0]][1] - moved[fixed[0]][0]} tokens",
            expected=f"{fixed[0]} tokens",
            fix="pass rows of this length, or build the bundle from a base with variable lengths",
        )
    moved_inputs: Arrays = {}
    for record in inputs:
        array = arrays[record.name]
        for place, axis in enumerate(record.axes[1:], 1):
            if axis in moved:
                first, end, _ = moved[axis]
                array = np.roll(array, -first, place)
                array = array if may_pad else array[(slice(None),) * place + (slice(end - first),)]
        moved_inputs[record.name] = np.ascontiguousarray(array)
    return moved_inputs, Origin(moved)


def _masks(inputs: Sequence[InputRecord]) -> list[InputRecord]:
    """Return the masks of tokens, [batch, tokens]; none for a decoder, whose masks cover its cache."""
    if any(record.role == "cache" for record in inputs):
        return []
    return [record for record in inputs if record.role == "mask" and len(record.axes) == 2]


def _spans(arrays: Mapping[str, np.ndarray], inputs: Sequence[InputRecord], row: int) -> Spans:
    spans: dict[Axis, tuple[int, int, int]] = {}
    for record in _masks(inputs):
        axis = record.axes[1]
        places = np.flatnonzero(arrays[record.name][row])
        if len(places) and (isinstance(axis, int) or names(axis) == (axis,)):
            spans[axis] = (int(places[0]), int(places[-1]) + 1, arrays[record.name].shape[1])
    return spans
