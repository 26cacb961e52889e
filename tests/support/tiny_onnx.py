"""A tiny transformer as ONNX, and random adapters for it: real parts that are fast to build and to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import build_bundle
from kept import kept
from onnx import numpy_helper, parser, shape_inference

from adapter_export.graph.adapter import HEAD, Adapter, Head
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds import BottleneckOptions, Kind, classification_head, houlsby, parallel, pfeiffer
from adapter_export.graph.tasks import Task
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner

WIDTH, VOCABULARY, LAYERS = 16, 40, 2
FIRST_TOKEN = classification_head("first")

_LAYER = """
    q{i} = MatMul({x}, l{i}_query)
    k{i} = MatMul({x}, l{i}_key)
    v{i} = MatMul({x}, l{i}_value)
    kt{i} = Transpose <perm = [0, 2, 1]> (k{i})
    scores{i} = MatMul(q{i}, kt{i})
    masked{i} = Add(scores{i}, bias)
    weights{i} = Softmax <axis = -1> (masked{i})
    context{i} = MatMul(weights{i}, v{i})
    attended{i} = MatMul(context{i}, l{i}_output)
    attention{i} = Add(attended{i}, l{i}_output_bias)
    after{i} = Add(attention{i}, {x})
    normed{i} = LayerNormalization <epsilon = 1e-5> (after{i}, l{i}_norm1, l{i}_norm1_bias)
    up{i} = MatMul(normed{i}, l{i}_up)
    upb{i} = Add(up{i}, l{i}_up_bias)
    act{i} = Relu(upb{i})
    down{i} = MatMul(act{i}, l{i}_down)
    ffn{i} = Add(down{i}, l{i}_down_bias)
    sum{i} = Add(ffn{i}, normed{i})
    {y} = LayerNormalization <epsilon = 1e-5> (sum{i}, l{i}_norm2, l{i}_norm2_bias)
"""

_INPUTS = "int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask"

MASK = """
    real = Cast <to = 1> (attention_mask)
    missing = Sub(one, real)
    penalty = Mul(missing, lowest)
    axis = Constant <value = int64[1] {1}> ()
    bias = Unsqueeze(penalty, axis)
"""


def tiny_model(
    *,
    opset: int = 17,
    seed: int = 0,
    inputs: str = _INPUTS,
    mask: str = MASK,
    hidden: str = "hidden",
    more: str = "",
    width: int = WIDTH,
) -> onnx.ModelProto:
    """A transformer with post-norm of 2 layers, one attention head, 40 ids.

    Args:
        opset: of the ONNX domain.
        seed: of the weights.
        inputs: the inputs of the graph.
        mask: the nodes that compute `bias` [batch, 1, tokens], added to the attention scores.
        hidden: the name of the final hidden state, an output.
        more: further outputs, each with its type, after a comma.
        width: of the residual stream.
    """
    names = ["embedded", *(f"y{i}" for i in range(LAYERS - 1)), hidden]
    layers = "".join(_LAYER.format(i=i, x=names[i], y=names[i + 1]) for i in range(LAYERS))
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        tiny ({inputs}) => (float[batch, tokens, {width}] {hidden}{more}) {{
            embedded = Gather(table, input_ids)
            {mask}
            {layers}
        }}"""
    model = parser.parse_model(text)
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in _weights(seed, width).items()
    )
    return shape_inference.infer_shapes(model)


def _weights(seed: int, width: int) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"table": (VOCABULARY, width)}
    for i in range(LAYERS):
        shapes |= {f"l{i}_{name}": (width, width) for name in ("query", "key", "value", "output")}
        shapes |= {f"l{i}_up": (width, 2 * width), f"l{i}_up_bias": (2 * width,), f"l{i}_down": (2 * width, width)}
        vectors = ("output_bias", "down_bias", "norm1", "norm1_bias", "norm2", "norm2_bias")
        shapes |= {f"l{i}_{name}": (width,) for name in vectors}
    rng = np.random.default_rng(seed)
    weights = {name: (rng.standard_normal(shape) * 0.4).astype(np.float32) for name, shape in shapes.items()}
    return {**weights, "one": np.array(1.0, np.float32), "lowest": np.array(-1e9, np.float32)}


def save_tiny(folder: Path, model: onnx.ModelProto | None = None) -> Path:
    """Write a tiny model with external data as `tiny.onnx` and `tiny.onnx.data`."""
    path = folder / "tiny.onnx"
    data = "tiny.onnx.data"
    onnx.save(model or tiny_model(), path, save_as_external_data=True, location=data, size_threshold=0)
    return path


def random_adapter(
    name: str,
    kind: Kind,
    base: OnnxBase,
    *,
    bottleneck: int = 8,
    labels: Sequence[str] = (),
    head: AdapterGraph | None = None,
    fingerprint: str | None = None,
) -> Adapter:
    """An adapter at all sites of the kind's roles, random weights of standard deviation 0.2.

    Args:
        name: its name, which also seeds the weights.
        kind: what acts where.
        base: the base.
        bottleneck: the width of the bottleneck, in a kind that has one.
        labels: those of a head; no head without them.
        head: the head's graph; mean pooling and one linear if not given.
        fingerprint: another base's than this one's.
    """
    width = base.sites.width
    wide = kind.with_widths(b=bottleneck) if any("b" in part.widths for part in kind.components) else kind
    placements = wide.placements(base.sites)
    shapes = {
        f"{site}.{parameter}": shape
        for site, placement in placements.items()
        for parameter, shape in kind.graphs[placement.graph].parameter_shapes(placement.widths).items()
    }
    full_head = None
    if labels:
        full_head = Head(
            head or classification_head(), {"d": width, "classes": len(labels)}, Task("single_label", tuple(labels))
        )
        shapes |= {f"{HEAD}.{p}": s for p, s in full_head.graph.parameter_shapes(full_head.widths).items()}
    rng = np.random.default_rng([*name.encode()])
    weights = {key: (rng.standard_normal(shape) * 0.2).astype(np.float32) for key, shape in shapes.items()}
    return Adapter(name, kind.name, fingerprint or base.fingerprint, kind.graphs, placements, weights, full_head)


def token_inputs(*lengths: int, tokens: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Ids and mask for rows of these lengths, padded to the longest or to `tokens`."""
    width = tokens or max(lengths)
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(1, VOCABULARY, mask.shape)
    return {"input_ids": ids * mask, "attention_mask": mask}


def mixed_adapters(base: OnnxBase) -> list[Adapter]:
    """Adapters of different topologies, widths and numbers of classes, one of them without a head."""
    gelu, relu = BottleneckOptions("gelu"), BottleneckOptions("relu", scaling=0.5)
    return [
        random_adapter("wide", houlsby(gelu), base, bottleneck=64, labels=("yes", "no")),
        random_adapter("narrow", houlsby(gelu), base, bottleneck=8, labels=("red", "green", "blue")),
        random_adapter("pfeiffer", pfeiffer(relu), base, bottleneck=4, labels=("a", "b"), head=FIRST_TOKEN),
        random_adapter("plain", parallel(BottleneckOptions("tanh")), base, bottleneck=3),
    ]


def build_tiny(folder: Path, *, tokenizer: str | None = None, model: onnx.ModelProto | None = None) -> Path:
    """Build a bundle of a tiny base and `mixed_adapters` in a folder; returns the bundle's folder."""
    base = open_onnx(save_tiny(folder, model))
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 1, "tokens": 1}, {"batch": 3, "tokens": 7}])
    build_bundle(
        base,
        mixed_adapters(base),
        folder / "bundle",
        references=CutRunner(base),
        cases=cases,
        tokenizer=tokenizer,
        max_tokens=None if tokenizer is None else 20,
    )
    return folder / "bundle"


def tiny_bundle(factory: pytest.TempPathFactory) -> Path:
    """The bundle of `build_tiny`."""
    return kept(factory, "tiny_bundle", build_tiny) / "bundle"
