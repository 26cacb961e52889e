"""A part of a fused layer's output: cut out of it, and put back among the others."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from adapter_export.onnx.lowering import Writer
from adapter_export.sites.site import Site
from adapter_export.sites.view import Dim

_SAME = 0
"""The length in a new shape that stands for the old one."""


def cut_part(whole: ir.Value, site: Site, shape: Sequence[Dim], writer: Writer) -> ir.Value:
    """The features of a part, [..., width].

    Args:
        whole: the fused layer's output.
        site: the part.
        shape: that of the output.
        writer: gets the nodes.
    """
    ((start, end),) = site.parts.values()
    blocks = _in_blocks(whole, site, shape, "h/blocks", writer)
    part = _slice(blocks, start, end, "h", writer)
    if site.blocks > 1:
        part = _reshaped(part, [*_outer(shape), site.width], "h/flat", writer)
    part.shape = None if whole.shape is None else ir.Shape([*whole.shape[:-1], site.width])
    return part


def join_part(whole: ir.Value, part: ir.Value, site: Site, shape: Sequence[Dim], writer: Writer) -> ir.Value:
    """The fused layer's output with other features in the place of a part; the arguments are those of `cut_part`."""
    ((start, end),) = site.parts.values()
    width = shape[-1]
    assert isinstance(width, int)  # a site's values have one
    blocks = _in_blocks(whole, site, shape, "whole/blocks", writer)
    middle = _in_blocks(part, site, shape, "whole/part", writer)
    ends = [(0, start, "whole/before"), (end, width // site.blocks, "whole/behind")]
    before, behind = ([_slice(blocks, *bounds, writer)] if bounds[0] < bounds[1] else [] for bounds in ends)
    joined = writer.op("whole", "Concat", (*before, middle, *behind), {"axis": -1})
    return _reshaped(joined, [*_outer(shape), width], "whole/flat", writer) if site.blocks > 1 else joined


def _outer(shape: Sequence[Dim]) -> list[int]:
    return [_SAME] * (len(shape) - 1)


def _in_blocks(value: ir.Value, site: Site, shape: Sequence[Dim], name: str, writer: Writer) -> ir.Value:
    """[..., blocks, features of a block]; the value itself where there is one block."""
    return value if site.blocks == 1 else _reshaped(value, [*_outer(shape), site.blocks, -1], name, writer)


def _reshaped(value: ir.Value, shape: Sequence[int], name: str, writer: Writer) -> ir.Value:
    return writer.op(name, "Reshape", (value, writer.integers(f"{name}/shape", shape)))


def _slice(value: ir.Value, start: int, end: int, name: str, writer: Writer) -> ir.Value:
    """The features [start, end) of the last axis."""
    bounds = (writer.integers(f"{name}/{edge}", [at]) for edge, at in (("start", start), ("end", end), ("axis", -1)))
    return writer.op(name, "Slice", (value, *bounds))
