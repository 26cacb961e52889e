"""A bundle with an output of 300 columns and a float input whose golden arrays are fills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from abridged import edit_manifest, filled, sketch
from building import build_bundle
from onnx import helper, numpy_helper
from tiny_onnx import MASK, WIDTH, random_adapter, save_tiny, tiny_model

from adapter_export.format.manifest import GRAPH_VARIANTS
from adapter_export.format.manifest_json import read_manifest
from adapter_export.format.tensors import read_tensors, write_tensors
from adapter_export.graph.kinds import houlsby, lora
from adapter_export.numerics.sample_inputs import InputCase, input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner

COLUMNS, SITE = 300, "layers.1.ffn"
SEED = 2**32 - 5
"""Seed of the input `features`; seed + index passes 2^32."""

_SHAPES = ({"batch": 1, "tokens": 3}, {"batch": 3, "tokens": 7})
_FEATURES = """
    pooled = ReduceMean <axes = [2], keepdims = 0> (features)
    shifted = Add(penalty, pooled)
"""


def _model() -> onnx.ModelProto:
    """The tiny model whose attention scores depend on `features`, and with a language head."""
    features = f"float[batch, tokens, {WIDTH}] features"
    inputs = f"int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask, {features}"
    mask = MASK.replace("    axis =", f"{_FEATURES}    axis =").replace("(penalty, axis)", "(shifted, axis)")
    model = tiny_model(inputs=inputs, mask=mask, more=f", float[batch, tokens, {COLUMNS}] logits")
    unembedding = np.random.default_rng(1).standard_normal((WIDTH, COLUMNS)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(unembedding, "unembedding"))
    model.graph.node.append(helper.make_node("MatMul", ["hidden", "unembedding"], ["logits"]))
    return model


def _with_fill(case: InputCase) -> InputCase:
    """Give `features` a fill of this specification, which golden data then contain whole."""
    features = filled(SEED, case.arrays["features"].shape)
    return replace(case, arrays={**case.arrays, "features": features}, seeds={})


def build_abridged(folder: Path) -> None:
    """Build `bundle` in a folder, with the adapters `a` and `b`, in every variant."""
    base = open_onnx(save_tiny(folder, _model()))
    build_bundle(
        base,
        [
            random_adapter("a", houlsby(), base, bottleneck=4, labels="xy"),
            random_adapter("b", lora(), base, labels="xyz"),
        ],
        folder / "bundle",
        references=CutRunner(base),
        cases=[_with_fill(case) for case in input_cases(base.inputs, seed=0, shapes=_SHAPES)],
        variants=list(GRAPH_VARIANTS),
        bake=["a"],
    )


def add_parts(bundle: Path, record: Mapping[str, Any], case: str = "batch3_tokens7") -> None:
    """Write golden parts for adapter `a` without `SITE`: weights of a sketch of `logits`, and whole outputs."""
    manifest, path = read_manifest(bundle), "golden/a.parts.safetensors"
    tensors, vectors = read_tensors(bundle / "adapters/a.safetensors"), read_tensors(bundle / "golden/a.safetensors")
    inputs = {one.name: vectors[f"{case}.input.{one.name}"] for one in manifest.inputs}
    neutral = {
        slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in manifest.slots if slot.site == SITE
    }
    session = ort.InferenceSession(bundle / "model.inputs.onnx", providers=["CPUExecutionProvider"])
    (faulty,) = session.run(["logits"], {**inputs, **tensors, **neutral})
    expected = vectors[f"{case}.output.logits"]
    shift = sketch(faulty, record).astype(np.float64) - sketch(expected, record)
    weights = np.rint(shift / np.abs(shift).max() * 127).astype(np.int8)
    part = {"fault": f"{SITE} off", "output": "logits", "factor": 1 / np.vdot(weights, shift), "limit": 0.5}
    arrays = {f"{case}.input.{name}": array for name, array in inputs.items()}
    write_tensors(bundle / path, {**arrays, f"{case}.output.logits": expected, f"{case}.part.0": weights})

    def change(document: dict[str, Any]) -> None:
        (golden,) = [one["golden"] for one in document["adapters"] if one["name"] == "a"]
        golden["parts"] = {"path": path, "cases": [case], "parts": [part]}
        document["files"] = sorted([*document["files"], {"path": path}], key=lambda file: file["path"])

    edit_manifest(bundle, change)
