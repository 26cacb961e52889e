"""A bundle of a tiny base with a vocabulary, whose golden data contain sketches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from building import build_bundle
from onnx import helper, numpy_helper
from tiny_onnx import WIDTH, random_adapter, save_tiny, tiny_model

from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import BottleneckOptions, pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner

WORDS = 6000
SHAPES = [{"batch": 1, "tokens": 1}, {"batch": 3, "tokens": 65}]


def wide_model() -> onnx.ModelProto:
    """The tiny transformer with one number for each of `WORDS` words at each token, `logits`."""
    model = tiny_model(more=f", float[batch, tokens, {WORDS}] logits")
    words = np.random.default_rng(1).standard_normal((WIDTH, WORDS)) * 0.2
    model.graph.initializer.append(numpy_helper.from_array(words.astype(np.float32), "words"))
    model.graph.node.append(helper.make_node("MatMul", ["hidden", "words"], ["logits"]))
    return model


def wide_adapter(name: str, base: OnnxBase) -> Adapter:
    """A bottleneck adapter after each FFN, with random weights that its name seeds."""
    return random_adapter(name, pfeiffer(BottleneckOptions("relu")), base, bottleneck=4)


def build_wide(folder: Path) -> Path:
    """Build the bundle with the adapters `a` and `b`; returns the bundle's folder."""
    base = open_onnx(save_tiny(folder, wide_model()))
    cases = input_cases(base.inputs, seed=0, shapes=SHAPES)
    adapters = [wide_adapter(name, base) for name in ("a", "b")]
    build_bundle(base, adapters, folder / "bundle", references=CutRunner(base), cases=cases)
    return folder / "bundle"
