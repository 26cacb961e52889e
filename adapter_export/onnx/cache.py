"""The width of a decoder's caches where a graph leaves it open and its attention operators know it."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

_QUERY, _KEY = 0, 1
_PAST, _PRESENT = (3, 4), (1, 2)
"""Inputs and outputs of `GroupQueryAttention` (com.microsoft, opset 1): past and present keys and values."""


def fix_cache_widths(graph: ir.Graph) -> None:
    """Give keys and values [batch, heads, tokens, width] that go in and come out their width.

    The builder of onnxruntime-genai leaves it open, because it halves where 4-bit numbers are packed. In caches of
    float32 it is that of one attention head.
    """
    for node in graph:
        if node.op_type == "GroupQueryAttention":
            width = _head_width(node)
            for value in _caches(node):
                if width is not None and value.dtype == ir.DataType.FLOAT and value.shape is not None:
                    value.shape = ir.Shape([*value.shape[:-1], width])


def _head_width(node: ir.Node) -> int | None:
    """The width of one head: query, key and value lie side by side where there is no input for the key."""
    heads = node.attributes.get_int("num_heads", 0)
    packed = node.inputs[_KEY] is None
    parts = heads + 2 * node.attributes.get_int("kv_num_heads", 0) if packed else heads
    query = node.inputs[_QUERY]
    width = query.shape[-1] if query is not None and query.shape else None
    return width // parts if isinstance(width, int) and parts else None


def _caches(node: ir.Node) -> Iterator[ir.Value]:
    given = [node.inputs[at] for at in _PAST if at < len(node.inputs)]
    yield from (value for value in given if value is not None and value.is_graph_input())
    made = [node.outputs[at] for at in _PRESENT if at < len(node.outputs)]
    yield from (value for value in made if value.is_graph_output())
