"""Fuse operators of a base before slots are inserted: later fusions might swallow a slot.

onnxscript's fusions for ONNX Runtime match the graphs that torch exports; ONNX Runtime's own fusions do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort
from onnxscript.rewriter.ort_fusions import optimize_for_ort

from adapter_export.errors import BaseModelError
from adapter_export.onnx_backend.base.external import readable
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, numerics
from adapter_export.onnx_backend.base.operators import SUMMANDS, fused_bias, is_skip_norm
from adapter_export.onnx_backend.base.weight_file import WeightFile
from adapter_export.onnx_backend.quantise.graph_edits import drop_unused_weights, expose_matrices
from adapter_export.onnx_backend.quantise.rewritten import Deviation, rewrite_base
from adapter_export.onnx_backend.rewrite.fused import open_sum, take_bias
from adapter_export.words import argument

_BIAS, _ADDED_TO_SCORES = 3, 5
"""Indices of inputs of `MultiHeadAttention`, after query, key and value."""

_ATTENTION_OPSET, _ATTENTION_RUNTIME = 23, (1, 24)
"""Opset with `Attention`, and the first onnxruntime with all operators of that opset."""

_AXES = 3
"""Batch, tokens and width."""

_SAME_MEANING = 20
"""Range of opsets in which only `GroupNormalization` changes its meaning."""

_RULES_THAT_FAIL = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Exceptions that onnxscript's rules raise on unexpected graphs."""


def optimize_base(base: OnnxBase, folder: Path) -> tuple[OnnxBase, Mapping[str, int]]:
    """Write a base with attention, norms and activations fused, and open it; count the fusions by onnxscript's names.

    Precision, fingerprint, inputs, outputs and sites are unchanged.

    Raises:
        BaseModelError: onnxscript cannot fuse the base, or changed its interface.
    """
    counts: Mapping[str, int] = {}

    def fuse(model: ir.Model, _weights: WeightFile) -> ir.Model:
        nonlocal counts
        model, counts = _fuse(model, base)
        return model

    rewritten = rewrite_base(base, folder, "optimised", fuse)
    return rewritten, {name: count for name, count in counts.items() if count and not name.startswith("skip_")}


def _fuse(model: ir.Model, base: OnnxBase) -> tuple[ir.Model, Mapping[str, int]]:
    """Fuse the operators of a graph, and count the fusions."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = readable(value.const_value)
    try:
        # `Gemm` needs its input reshaped to two axes, but fusing attention loses that reshape
        expose_matrices(model, behind_transposes=False)
        drop_unused_weights(model)
        model, counts = optimize_for_ort(model)
    except _RULES_THAT_FAIL as error:
        raise BaseModelError(
            "onnxscript cannot fuse the operators of the base",
            where=base.path,
            found=f"{type(error).__name__}: {error}".partition("\n")[0],
            fix="build it without " + argument("optimize") + "; ONNX Runtime fuses what it can when it loads the graph",
        ) from error
    # a norm fused with its sum would hide a site
    model = _separate_sums(model)
    if numerics(base.model).precision.name == "int8":
        model = _use_standard_attention(model)
    return model, counts


def _separate_sums(model: ir.Model) -> ir.Model:
    """Separate sums from norms and activations again, if the owner of a bias among them is clear.

    Separate operators are faster on the CPU; elsewhere ONNX Runtime fuses them when loading.
    """
    for node in [node for node in model.graph.all_nodes() if is_skip_norm(node) or fused_bias(node) is not None]:
        summands, places = node.inputs[:SUMMANDS], [0]
        if is_skip_norm(node):
            places = [at for at, value in enumerate(summands) if value is not None and len(value.uses()) == 1]
        if fused_bias(node) is not None and len(places) != 1:
            continue
        bias = take_bias(node)
        if bias is not None:
            biased = ir.node("Add", [summands[places[0]], bias])
            biased.outputs[0].shape, biased.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
            model.graph.insert_before(node, biased)
            node.replace_input_with(places[0], biased.outputs[0])
        if is_skip_norm(node):
            open_sum(node)
    return model


def _use_standard_attention(model: ir.Model) -> ir.Model:
    """Replace ONNX Runtime's attention by the standard `Attention`, whose kernel copies no heads and is faster."""
    graph = model.graph
    fused = {node: _separate(node) for node in graph.all_nodes() if node.op_type == "MultiHeadAttention"}
    is_older = tuple(map(int, ort.__version__.split(".")[:2])) < _ATTENTION_RUNTIME
    changes = any(node.op_type == "GroupNormalization" for node in graph.all_nodes())
    # the opset rises to 23, which must not change the meaning of other operators
    if is_older or changes or graph.opset_imports[""] < _SAME_MEANING or not fused or not all(fused.values()):
        return model
    for node, read in fused.items():
        biases, scores = _input(node, _BIAS), _input(node, _ADDED_TO_SCORES)
        start = 0
        for at, (value, width) in enumerate(read):
            if biases is not None and biases.const_value is not None:
                part = ir.tensor(biases.const_value.numpy()[start : start + width])
                bias = ir.Value(name=f"{biases.name}.{node.outputs[0].name}.{at}", const_value=part)
                graph.register_initializer(bias)
                biased = ir.node("Add", [value, bias])
                biased.outputs[0].shape, biased.outputs[0].type = value.shape, value.type
                graph.insert_before(node, biased)
                node.replace_input_with(at, biased.outputs[0])
                start += width
        node.resize_inputs(_BIAS + 1)
        node.replace_input_with(_BIAS, scores)  # index of the mask in the standard operator
        heads = node.attributes.pop("num_heads").as_int()
        for name in ("q_num_heads", "kv_num_heads"):
            node.attributes.add(ir.AttrInt64(name, heads))
        node.op_type, node.domain = "Attention", ""
    graph.opset_imports[""] = max(graph.opset_imports[""], _ATTENTION_OPSET)
    return model


def _separate(node: ir.Node) -> list[tuple[ir.Value, int]]:
    """Return the query, key and value of a fused attention, [batch, tokens, width], and their widths.

    Empty if it reads anything except these, a constant bias, and a value added to the scores, if it has a second
    output, or if its output has the shape recorded before the fusion.
    """
    read = [(at, value) for at, value in enumerate(node.inputs) if value is not None]
    bias = _input(node, _BIAS)
    simple = {at for at, _ in read} <= {0, 1, 2, _BIAS, _ADDED_TO_SCORES} and len(node.outputs) == 1
    simple = simple and node.outputs[0].shape is not None and len(node.outputs[0].shape) == _AXES
    if (
        not simple
        or not node.attributes.keys() <= {"num_heads", "scale"}
        or (bias is not None and bias.const_value is None)
    ):
        return []
    shapes = [(value, value.shape) for at, value in read if at < _BIAS]
    widths = [(value, shape[-1]) for value, shape in shapes if shape is not None and len(shape) == _AXES]
    whole = [(value, width) for value, width in widths if isinstance(width, int)]
    return whole if len(whole) == _BIAS else []


def _input(node: ir.Node, at: int) -> ir.Value | None:
    return node.inputs[at] if at < len(node.inputs) else None


def check_deviation(deviation: Deviation) -> None:
    """Raise an error if an optimized base differs from the original by more than rounding."""
    if not deviation.largest <= deviation.allowed:  # NaN fails
        raise BaseModelError(
            "the optimized base does not match the original",
            where=f"output `{deviation.output}`",
            found=f"a difference of {deviation.largest:.2e}",
            expected=f"at most {deviation.allowed:.2e}",
            fix="build it without " + argument("optimize") + ", and report this with the base",
        )
