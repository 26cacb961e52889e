"""Layouts of an FX graph that cut one axis of what they read, or move whole axes."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch.fx import Node

from adapter_export.sites.view import Cut

_UNBIND = 1
_SPLITS = {"split": 2, "split_with_sizes": 2, "chunk": 2, "unbind": _UNBIND}
"""What cuts a tensor into parts, and which argument is the axis; 0 if it is not given."""

_ORDERS = frozenset({"transpose", "permute", "unsqueeze", "squeeze", "contiguous", "clone"})


def cut_of(node: Node, op: str) -> Cut | None:
    """The slice of its input that a node is; none where it is not known, or is not one slice.

    For a part of a `split`, that is the slice of what was split.
    """
    if op == "getitem":
        whole, index = node.args
        return _part(whole, index) if isinstance(whole, Node) and isinstance(index, int) else None
    if op not in ("slice", "select", "narrow") or not isinstance(node.args[0], Node):
        return None
    axis, start = (*node.args[1:3], 0, 0)[:2]
    size, length = _size(node.args[0], axis), _size(node, axis)
    if not isinstance(start, int) or size is None:
        return None
    begin = start % size if start < 0 else min(start, size)
    steps = node.args[4] if op == "slice" and len(node.args) > 4 else 1
    length = 1 if op == "select" else length
    return None if length is None or steps != 1 else Cut(_axis(node.args[0], axis), begin, begin + length)


def order_of(node: Node, op: str) -> tuple[int | None, ...]:
    """The axis of its input that each axis of a node's result is, of those that move whole axes; empty for others."""
    value = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], Node) else None
    if not isinstance(value, torch.Tensor) or op not in _ORDERS:
        return ()
    axes = list(range(value.dim()))
    if op in ("contiguous", "clone"):
        return tuple(axes)
    first: Any = node.args[1] if len(node.args) > 1 else None
    if op == "permute":
        return tuple(axes[axis] for axis in first)
    if op == "unsqueeze":
        at = first % (value.dim() + 1)
        return (*axes[:at], None, *axes[at:])
    if op == "squeeze":
        at = first % value.dim() if isinstance(first, int) else None
        return tuple(axis for axis in axes if axis != at) if at is not None and value.shape[at] == 1 else ()
    other: Any = node.args[2]
    axes[first], axes[other] = axes[other], axes[first]
    return tuple(axes)


def _part(whole: Node, index: int) -> Cut | None:
    """One of the parts into which a tensor is split."""
    source, parts = whole.args[0] if whole.args else None, whole.meta.get("val")
    place = _SPLITS.get(getattr(whole.target, "__name__", "").split(".")[0])
    if not isinstance(source, Node) or not isinstance(parts, list | tuple) or place is None:
        return None
    axis = _axis(source, whole.kwargs.get("dim", whole.args[place] if len(whole.args) > place else 0))
    ends = list(accumulate(1 if place == _UNBIND else part.shape[axis] for part in parts))
    start = ends[index - 1] if index else 0
    return Cut(axis, start, ends[index]) if all(isinstance(end, int) for end in ends) else None


def _axis(node: Node, axis: object) -> int:
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor)  # the operators take nothing else
    assert isinstance(axis, int)
    return axis % value.dim()


def _size(node: Node, axis: object) -> int | None:
    value = node.meta.get("val")
    size = (
        value.shape[axis] if isinstance(value, torch.Tensor) and isinstance(axis, int) and value.dim() > axis else None
    )
    return size if isinstance(size, int) else None
