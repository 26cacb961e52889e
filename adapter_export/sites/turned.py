"""Whether a layer reads tokens before batch."""

from __future__ import annotations

from collections.abc import Iterable

from adapter_export.sites.index import FlowIndex

_BATCH_SECOND = (1, 0, 2)
_ROWS, _APART = 2, 3
"""The axes of a value with the tokens of all texts in one row, and of one that has batch and tokens apart."""


def is_turned(index: FlowIndex, value: str, streams: Iterable[str]) -> bool:
    """Whether tokens come before batch in what a linear layer reads, as `torch.nn.MultiheadAttention` has them.

    Args:
        index: the graph of the base.
        value: what the layer reads, [batch, tokens, d_in] or [batch·tokens, d_in] if it is not turned.
        streams: values of residual streams of the base, whose axes are those of a request.
    """
    source = index.producer(value)
    before = () if source is None or not source.inputs else index.flow.shapes.get(source.inputs[0], ())
    shape = index.flow.shapes.get(value, ())
    if len(shape) == _APART and source is not None and source.order == _BATCH_SECOND:
        return True
    leading = shape[:_ROWS] if len(shape) == _APART else before[:_ROWS] if len(before) > len(shape) else ()
    if len(leading) != _ROWS or None in leading or leading[0] == leading[1]:
        return False
    return any(leading == index.flow.shapes.get(stream, ())[1::-1] for stream in streams)
