"""Layouts of an ONNX graph that cut one axis of what they read, or move whole axes."""

from __future__ import annotations

import onnx_ir as ir

from adapter_export.sites.view import Cut


def cuts_of(node: ir.Node) -> dict[str, Cut]:
    """The slice of its input that each output is; none where it is not known, or is not one slice."""
    source = node.inputs[0] if node.inputs else None
    if source is None or source.shape is None:
        return {}
    if node.op_type == "Split":
        return _split(node, len(source.shape))
    cut = {"Slice": _slice, "Gather": _pick}.get(node.op_type, _none)(node, source.shape)
    return {} if cut is None or not node.outputs[0].name else {node.outputs[0].name: cut}


def _none(_node: ir.Node, _shape: ir.Shape) -> None:
    return None


def _split(node: ir.Node, rank: int) -> dict[str, Cut]:
    axis = node.attributes.get_int("axis", 0) % rank
    found, start = {}, 0
    for output in node.outputs:
        size = output.shape[axis] if output.shape is not None else None
        if not isinstance(size, int):
            return {}
        if output.name:
            found[output.name] = Cut(axis, start, start + size)
        start += size
    return found


def _slice(node: ir.Node, shape: ir.Shape) -> Cut | None:
    starts, ends, axes, steps = (_numbers(node, at) for at in (1, 2, 3, 4))
    if starts is None or ends is None or axes is None or len(axes) != 1 or steps not in (None, [1]):
        return None
    axis = axes[0] % len(shape)
    size = shape[axis]
    if not isinstance(size, int):
        return None
    start, end, _ = slice(starts[0], ends[0]).indices(size)
    return Cut(axis, start, end)


def _pick(node: ir.Node, shape: ir.Shape) -> Cut | None:
    picked = _numbers(node, 1)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    size = shape[axis]
    if picked is None or len(picked) != 1 or not isinstance(size, int):
        return None
    return Cut(axis, picked[0] % size, picked[0] % size + 1)


def _numbers(node: ir.Node, at: int) -> list[int] | None:
    """The numbers of an input, if they are constant."""
    value = node.inputs[at] if at < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(number) for number in tensor.numpy().ravel()]


def order_of(node: ir.Node) -> tuple[int | None, ...]:
    """The axis of its input that each axis of a node's result is, of those that move whole axes; empty for others."""
    source = node.inputs[0] if node.inputs else None
    if node.op_type == "Transpose":
        return tuple(node.attributes.get_ints("perm", ()))
    axes = _numbers(node, 1) if node.op_type in ("Unsqueeze", "Squeeze") else None
    if axes is None or source is None or source.shape is None:
        return ()
    rank = len(source.shape)
    if node.op_type == "Squeeze":
        dropped = {axis % rank for axis in axes}
        return tuple(axis for axis in range(rank) if axis not in dropped)
    new, old = {axis % (rank + len(axes)) for axis in axes}, iter(range(rank))
    return tuple(None if axis in new else next(old) for axis in range(rank + len(axes)))
