"""A decoder with a cache as an ONNX graph that no tool made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx

WIDTH, WORDS, HEADS = 16, 20, 2

_LAYER = """
    qkv = MatMul(x0, qkv_weight)
    mixed, present_key, present_value = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 2> (
        qkv, , , past_key, past_value, last, total, , )
    attention = MatMul(mixed, out_weight)
    x1 = Add(x0, attention)
    up = MatMul(x1, up_weight)
    active = Relu(up)
    ffn = MatMul(active, down_weight)
    hidden = Add(x1, ffn)
"""

_LENGTHS = """
    axis = Constant <value = int64[1] {1}> ()
    one = Constant <value = int64 {1}> ()
    length = ReduceSum <keepdims = 0> (mask, axis)
    last_long = Sub(length, one)
    last = Cast <to = 6> (last_long)
    shape = Shape(mask)
    total_long = Gather(shape, one)
    total = Cast <to = 6> (total_long)
"""


def cached_graph(presents: tuple[str, ...] = ("present_key", "present_value")) -> onnx.ModelProto:
    """A decoder of one layer whose attention is `GroupQueryAttention`, with caches of an open width.

    Args:
        presents: the order of the outputs that the caches are in the next call.
    """
    outputs = ", ".join(f"float[batch, 2, all_tokens, width] {name}" for name in presents)
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 20, "com.microsoft" : 1]>
        decoder (
            int64[batch, tokens] ids, int64[batch, all_tokens] mask,
            float[batch, 2, past, width] past_key, float[batch, 2, past, width] past_value
        ) => (float[batch, tokens, {WIDTH}] hidden, {outputs}) {{
            x0 = Gather(table, ids)
            {_LENGTHS}
            {_LAYER}
        }}"""
    )
    shapes = {"table": (WORDS, WIDTH), "qkv_weight": (WIDTH, 3 * WIDTH), "out_weight": (WIDTH, WIDTH)}
    shapes |= {"up_weight": (WIDTH, 32), "down_weight": (32, WIDTH)}
    rng = np.random.default_rng(0)
    model.graph.initializer.extend(
        numpy_helper.from_array((rng.standard_normal(shape) * 0.4).astype(np.float32), name)
        for name, shape in shapes.items()
    )
    for name in ("qkv", "x0", "mixed", "attention", "x1", "ffn"):
        axes = ["batch", "tokens", 3 * WIDTH if name == "qkv" else WIDTH]
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes))
    return model


def open_cached(folder: Path, model: onnx.ModelProto | None = None) -> OnnxBase:
    """Write a decoder as `decoder.onnx` and open it."""
    onnx.save(cached_graph() if model is None else model, folder / "decoder.onnx")
    return open_onnx(folder / "decoder.onnx")
