"""The slices of a value's features that a graph cuts out of it."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from adapter_export.sites.index import FlowIndex
from adapter_export.sites.view import Dim


def pieces_of(index: FlowIndex, value: str) -> dict[str, tuple[int, int]]:
    """The values that are slices [start, end) of the last axis of a value [..., width].

    They are cut off that axis, or off the first of those that a reshape makes of it. What is cut in another way, such
    as by heads, is no slice.
    """
    shape = index.flow.shapes.get(value, ())
    if not shape or not isinstance(shape[-1], int):
        return {}
    found = dict(_cuts(index, value, shape, shape[-1]))
    for node in index.readers(value):
        reshaped = index.flow.shapes.get(node.outputs[0], ())
        if node.kind == "layout" and not node.cuts and _splits_last(shape, reshaped):
            found |= _cuts(index, node.outputs[0], reshaped[: len(shape)], shape[-1])
    return found


def _cuts(index: FlowIndex, value: str, shape: tuple[Dim, ...], width: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """The cuts along the last axis of `shape`, in features of `width`."""
    size = shape[-1]
    assert isinstance(size, int)  # the callers have seen to it
    for node in index.readers(value):
        parts = [node] if node.cuts else index.readers(node.outputs[0]) if _is_split(index, node.outputs[0]) else []
        for part in parts:
            for name, cut in part.cuts.items():
                if cut.axis == len(shape) - 1:
                    yield name, (cut.start * width // size, cut.end * width // size)


def _is_split(index: FlowIndex, value: str) -> bool:
    """Whether it is no tensor but all parts of one, which are taken out of it one by one."""
    return value not in index.flow.shapes


def _splits_last(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> bool:
    """Whether a reshape makes several axes of the last one, and leaves the others alone."""
    tail = [axis for axis in after[len(before) - 1 :] if isinstance(axis, int)]
    return len(after) > len(before) and len(tail) == len(after) - len(before) + 1 and prod(tail) == before[-1]
