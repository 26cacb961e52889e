"""Requests become one call and its outputs theirs again: joined, padded along the axes of a mask, and taken apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.format.axes import length, names
from adapter_export.format.manifest import Axis, Manifest
from adapter_export.runtime.head_rows import own_classes
from adapter_export.runtime.packing import Item, longest

Outputs = dict[str, np.ndarray]


def batch_axis(manifest: Manifest) -> str:
    """The first axis of all inputs.

    Raises:
        RequestError: they have none in common, or one of a fixed length; or the base keeps a cache of tokens.
    """
    first = {record.axes[0] if record.axes else None for record in manifest.inputs}
    axis = next(iter(first))
    if len(first) > 1 or not isinstance(axis, str) or any(record.role == "cache" for record in manifest.inputs):
        raise RequestError(
            "the requests of this base cannot be put together",
            found=", ".join(f"`{record.name}` {list(record.axes)}" for record in manifest.inputs),
            expected="a batch of any length as the first axis of all inputs, and no cache",
            fix="call `run` for each",
        )
    return axis


def rows_can_be_told_apart(manifest: Manifest, batch: str) -> bool:
    """Whether all outputs have the batch as their first axis."""
    return all(record.axes[:1] == (batch,) for record in manifest.outputs)


def sizes_of(arrays: Mapping[str, np.ndarray], manifest: Manifest, batch: str) -> dict[str, int]:
    """The length of each named axis of checked inputs, but that of the batch."""
    axes = [pair for record in manifest.inputs for pair in zip(record.axes, arrays[record.name].shape, strict=True)]
    return {axis: size for axis, size in axes if isinstance(axis, str) and names(axis) == (axis,) and axis != batch}


def joined(batch: Sequence[Item], manifest: Manifest) -> Outputs:
    """The inputs of a call, filled up with zeros, which the mask hides."""
    sizes = longest(batch)
    inputs: Outputs = {}
    for record in manifest.inputs:
        shape = [length(axis, sizes) for axis in record.axes[1:]]
        array = np.zeros((sum(item.rows for item in batch), *shape), record.dtype)
        start = 0
        for item in batch:
            own = item.arrays[record.name]
            array[(slice(start, start + item.rows), *(slice(size) for size in own.shape[1:]))] = own
            start += item.rows
        inputs[record.name] = array
    return inputs


def taken_apart(outputs: Outputs, batch: Sequence[Item], manifest: Manifest) -> Iterator[tuple[Item, Outputs]]:
    """Each item with its own outputs, without padding, in memory of their own."""
    heads = {head.output for head in manifest.heads}
    axes = {record.name: record.axes for record in manifest.outputs}
    start = 0
    for item in batch:
        rows = slice(start, start + item.rows)
        found = {name: _cut(array[rows], axes[name], item) for name, array in outputs.items() if name not in heads}
        if item.entry is not None and item.entry.output is not None:
            output = item.entry.output
            found[output] = own_classes(_cut(outputs[output][rows], axes[output], item)).copy()
        yield item, found
        start += item.rows


def _cut(rows: np.ndarray, axes: Sequence[Axis], item: Item) -> np.ndarray:
    known = [isinstance(axis, str) and all(name in item.sizes for name in names(axis)) for axis in axes[1:]]
    cut = [
        slice(length(axis, item.sizes) if is_known else None) for axis, is_known in zip(axes[1:], known, strict=True)
    ]
    return rows[(slice(None), *cut)].copy()
