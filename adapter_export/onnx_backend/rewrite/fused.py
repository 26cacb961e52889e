"""Extract biases and sums from fused operators, so that a site's values are complete, or reject them.

ONNX Runtime's tools fuse the bias of a linear layer into the next operator: a residual sum with its norm, an
activation, or an attention, which has one vector [d of queries + d of keys + d of values]. The bias belongs to the
layer's output `h`.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.onnx_backend.base.operators import SUM_OUTPUT, SUMMANDS, UNBIASED, fused_bias
from adapter_export.onnx_backend.onnx_lowering import Writer

_NORMS = {
    "SkipLayerNormalization": "LayerNormalization",
    "SkipSimplifiedLayerNormalization": "SimplifiedLayerNormalization",
}
"""Operators that add and normalize, and the norm that remains without the sum."""

_ATTENTIONS = {"MultiHeadAttention": 3, "PackedMultiHeadAttention": 3, "DecoderMaskedMultiHeadAttention": 10}
"""Attentions of com.microsoft with a bias for query, key and value, and the index of that input."""

_PASSED = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Cast", "Identity"}) | {
    *("Gather", "Concat", "Mul", "Div")
}
"""Operators that may be between a layer and the operator with its bias."""

_FACTORS = ("Normalization", "Linear", "BiasGelu", "FastGelu")
"""Suffixes of names of operators whose vectors are factors, scales, or biases that can be extracted."""


def take_bias(node: ir.Node) -> ir.Value | None:
    """Extract the bias from a node; the caller adds it to `h`. Returns `None` for nodes without a bias.

    Besides sums, activations may contain one: that of the linear layer before them.
    """
    bias = fused_bias(node)
    if bias is not None:
        last = max(at for at, value in enumerate(node.inputs) if value is bias)  # the norm's bias may be equal
        node.replace_input_with(last, None)
    if bias is not None and node.op_type in UNBIASED:
        node.resize_inputs(1)
        node.op_type = UNBIASED[node.op_type]
    return bias


def open_sum(node: ir.Node) -> ir.Value:
    """Extract the sum from a node, leaving the norm; return the sum, with its previous readers and name."""
    graph = node.graph
    assert graph is not None
    assert fused_bias(node) is None  # the bias belongs to `h` and was moved there before
    named = node.outputs[SUM_OUTPUT] if len(node.outputs) > SUM_OUTPUT else None
    add = ir.Node("", "Add", node.inputs[:SUMMANDS])
    total = add.outputs[0]
    total.shape, total.type = node.outputs[0].shape, node.outputs[0].type
    graph.insert_before(node, add)
    if named is not None:
        name = named.name
        for at, output in enumerate(graph.outputs):
            if output is named:
                graph.outputs[at] = total
        named.replace_all_uses_with(total)
        total.name = name
    read = [total, *(value for value in node.inputs[SUMMANDS:] if value is not None)]
    for at, value in enumerate(read):
        node.replace_input_with(at, value)
    node.resize_inputs(len(read))
    node.resize_outputs(1)
    node.op_type, node.domain = _NORMS[node.op_type], ""
    return total


def has_attention_bias(node: ir.Node) -> bool:
    """Return whether a node is a fused attention with a bias of its inputs."""
    at = _ATTENTIONS.get(node.op_type) if node.domain == "com.microsoft" else None
    return at is not None and at < len(node.inputs) and node.inputs[at] is not None


def take_attention_bias(node: ir.Node, writer: Writer) -> list[tuple[ir.Value, ir.Value]]:
    """Extract the bias from a fused attention, which then reads sums with slices of it.

    Returns the old input and the new sum, for query, key and value; the caller inserts the nodes written by `writer`
    before the attention.

    Raises:
        BaseModelError: these are not three values of known width that only the attention reads.
    """
    at = _ATTENTIONS[node.op_type]
    read, bias = [value for value in node.inputs[:3] if value is not None], node.inputs[at]
    widths = [_width(value) for value in read]
    if len(set(read)) < 3 or None in widths or any(len(value.uses()) != 1 for value in read):
        raise _hidden_bias(node)
    assert bias is not None  # the caller has checked
    sums, start = [], 0
    for place, (value, width) in enumerate(zip(read, widths, strict=True)):
        assert width is not None
        first, end = writer.integers(f"{place}/start", [start]), writer.integers(f"{place}/end", [start + width])
        part = writer.op(f"{place}/part", "Slice", (bias, first, end))
        total = writer.op(f"{place}/sum", "Add", (value, part))
        total.shape = value.shape
        sums.append((value, total))
        node.replace_input_with(place, total)
        start += width
    node.replace_input_with(at, None)
    return sums


def check_no_bias_behind(h: ir.Value, activations: Set[str]) -> None:
    """Reject a layer's output if a later operator adds a bias to it that cannot be extracted."""
    width = _width(h) or 0
    for node in _behind(h):
        if has_attention_bias(node) or _may_add(node, width, activations):
            raise _hidden_bias(node)


def _may_add(node: ir.Node, width: int, activations: Set[str]) -> bool:
    """Return whether a non-standard operator reads a trained vector that may be such a bias."""
    if node.domain in ("", "ai.onnx") or node.op_type.endswith(_FACTORS):
        return False
    vectors = [value for value in node.inputs if value is not None and value.name not in activations]
    return any(value.shape is not None and len(value.shape) == 1 and (_width(value) or 0) >= width for value in vectors)


def _hidden_bias(node: ir.Node) -> BaseModelError:
    """Return the error for a layer whose bias cannot be moved back to it."""
    return BaseModelError(
        "contains the bias of the preceding linear layer, so the layer's output is not available with its bias",
        where=f"`{node.name or node.outputs[0].name}`, {node.op_type}",
        expected="an `Add` for the bias, or query, key and value of three layers with no other consumer",
        fix="use the graph before optimization; ONNX Runtime fuses it when loading",
    )


def _behind(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the operators that read a value, directly or after moving or scaling it."""
    for node in dict.fromkeys(use.node for use in value.uses()):
        yield node
        if node.op_type in _PASSED and not node.domain:
            for output in node.outputs:
                yield from _behind(output)


def _width(value: ir.Value) -> int | None:
    last = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else None
