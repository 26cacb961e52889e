"""The features of a value that a graph cuts out of it."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from adapter_export.sites.index import FlowIndex
from adapter_export.sites.view import Dim, FlowNode


class Piece(NamedTuple):
    """Some features of a value: the slice [start, end) of each of `blocks` equal blocks of them."""

    start: int
    end: int
    blocks: int = 1


class _View(NamedTuple):
    """A value with the features of another one on several axes.

    Attributes:
        value: its name.
        inner: the lengths of the axes that the features were put on.
        places: for each axis which of those it is; none for one of the axes before the features.
    """

    value: str
    inner: tuple[int, ...]
    places: tuple[int | None, ...]


def pieces_of(index: FlowIndex, value: str) -> dict[str, Piece]:
    """The values that are cut out of the last axis of a value [..., width], or out of an axis that is made of it.

    A reshape may have put the features on several axes, as heads, and transpositions may have moved these.
    """
    shape = index.flow.shapes.get(value, ())
    if not shape or not isinstance(shape[-1], int):
        return {}
    views = [_View(value, (shape[-1],), (*[None] * (len(shape) - 1), 0)), *_reshaped(index, value, shape)]
    for view in views:  # which grow on the way
        views += _moved(index, view)
    return {name: piece for view in views for name, piece in _cuts(index, view)}


def _reshaped(index: FlowIndex, value: str, shape: tuple[Dim, ...]) -> Iterator[_View]:
    """Reshapes that make several axes of the last one, and leave the others alone."""
    outer = len(shape) - 1
    for node in index.readers(value):
        after = index.flow.shapes.get(node.outputs[0], ())
        inner = tuple(axis for axis in after[outer:] if isinstance(axis, int))
        splits = len(after) > len(shape) and len(inner) == len(after) - outer and prod(inner) == shape[-1]
        if splits and node.kind == "layout" and not node.cuts:
            yield _View(node.outputs[0], inner, (*[None] * outer, *range(len(inner))))


def _moved(index: FlowIndex, view: _View) -> Iterator[_View]:
    for node in index.readers(view.value):
        if node.order and not node.cuts:
            places = tuple(None if axis is None else view.places[axis] for axis in node.order)
            yield view._replace(value=node.outputs[0], places=places)


def _cuts(index: FlowIndex, view: _View) -> Iterator[tuple[str, Piece]]:
    for node in index.readers(view.value):
        for part in _parts(index, node):
            for name, cut in part.cuts.items():
                place = view.places[cut.axis]
                if place is not None:
                    size = prod(view.inner[place + 1 :])
                    yield name, Piece(cut.start * size, cut.end * size, prod(view.inner[:place]))


def _parts(index: FlowIndex, node: FlowNode) -> list[FlowNode]:
    """The nodes that cut: this one, or where it gives no tensor but all parts of one, those that take them out."""
    if node.cuts:
        return [node]
    return [] if node.outputs[0] in index.flow.shapes else index.readers(node.outputs[0])
