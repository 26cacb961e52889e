"""Biases and sums inside fused operators: taken out, so that a site has its values whole, or refused.

ONNX Runtime's tools fuse the bias of a linear layer into the operator behind it: a residual sum with its norm, an
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
"""The operators that add and normalise, and the norm that is left when the sum is taken out."""

_ATTENTIONS = {"MultiHeadAttention": 3, "PackedMultiHeadAttention": 3, "DecoderMaskedMultiHeadAttention": 10}
"""The attentions of com.microsoft that have a bias of query, key and value, and which of their inputs it is."""

_PASSED = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Cast", "Identity"}) | {
    *("Gather", "Concat", "Mul", "Div")
}
"""Operators that may stand between a layer and the operator with its bias."""

_FACTORS = ("Normalization", "Linear", "BiasGelu", "FastGelu")
"""The ends of the names of operators that read vectors which are factors or scales, or biases that can be taken out."""


def take_bias(node: ir.Node) -> ir.Value | None:
    """Take the bias out of a node; the caller adds it to `h`. None for any other node, or one without a bias.

    Beside the sums, activations hold one: that of the linear layer before them.
    """
    bias = fused_bias(node)
    if bias is not None:
        last = max(at for at, value in enumerate(node.inputs) if value is bias)  # a norm's own bias may be the same one
        node.replace_input_with(last, None)
    if bias is not None and node.op_type in UNBIASED:
        node.resize_inputs(1)
        node.op_type = UNBIASED[node.op_type]
    return bias


def open_sum(node: ir.Node) -> ir.Value:
    """Take the sum out of a node, which then is the norm alone; return it, with the readers and name that it had."""
    graph = node.graph
    assert graph is not None
    assert fused_bias(node) is None  # it belongs to `h`, and was put there before
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
    """Return whether a node is a fused attention with a bias of what it reads."""
    at = _ATTENTIONS.get(node.op_type) if node.domain == "com.microsoft" else None
    return at is not None and at < len(node.inputs) and node.inputs[at] is not None


def take_attention_bias(node: ir.Node, writer: Writer) -> list[tuple[ir.Value, ir.Value]]:
    """Take the bias out of a fused attention, which reads sums with slices of it instead.

    Returns what was read before and the sum that is read now, for query, key and value; the caller puts what `writer`
    wrote before the attention. `BaseModelError`: these are not three values of known width that only it reads.
    """
    at = _ATTENTIONS[node.op_type]
    read, bias = [value for value in node.inputs[:3] if value is not None], node.inputs[at]
    widths = [_width(value) for value in read]
    if len(set(read)) < 3 or None in widths or any(len(value.uses()) != 1 for value in read):
        raise _hidden_bias(node)
    assert bias is not None  # the caller has looked
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
    """Refuse a layer's output to which an operator behind it adds a bias that cannot be taken out."""
    width = _width(h) or 0
    for node in _behind(h):
        if has_attention_bias(node) or _may_add(node, width, activations):
            raise _hidden_bias(node)


def _may_add(node: ir.Node, width: int, activations: Set[str]) -> bool:
    """Return whether an operator that is not of the standard reads a trained vector that may be such a bias."""
    if node.domain in ("", "ai.onnx") or node.op_type.endswith(_FACTORS):
        return False
    vectors = [value for value in node.inputs if value is not None and value.name not in activations]
    return any(value.shape is not None and len(value.shape) == 1 and (_width(value) or 0) >= width for value in vectors)


def _hidden_bias(node: ir.Node) -> BaseModelError:
    """The refusal of a layer whose bias cannot be given back to it."""
    return BaseModelError(
        "adds the bias of a linear layer before it, so that the layer's output cannot be had with its bias",
        where=f"`{node.name or node.outputs[0].name}`, {node.op_type}",
        expected="an `Add` for the bias, or query, key and value of three layers with no other consumer",
        fix="give the graph as it was before it was optimised; ONNX Runtime fuses it again when it loads it",
    )


def _behind(value: ir.Value) -> Iterator[ir.Node]:
    """The operators that read a value, moved or scaled at most."""
    for node in dict.fromkeys(use.node for use in value.uses()):
        yield node
        if node.op_type in _PASSED and not node.domain:
            for output in node.outputs:
                yield from _behind(output)


def _width(value: ir.Value) -> int | None:
    last = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else None
