"""A bundle in 8 bits, whose budgets hide a missing site of an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from building import build_bundle, in_precision
from tiny_onnx import random_adapter, save_tiny

from adapter_export.format.manifest import VariantName
from adapter_export.graph.kinds import houlsby, lora
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner

SHAPES = ({"batch": 1, "tokens": 3}, {"batch": 1, "tokens": 33}, {"batch": 3, "tokens": 7})


def build_coarse(folder: Path, variants: Sequence[VariantName], bake: Sequence[str] = ()) -> None:
    """Build `bundle` in a folder, with the adapters `a` and `b` on a tiny base."""
    base = in_precision(open_onnx(save_tiny(folder)), "int8", folder)
    adapters = [
        random_adapter("a", houlsby(), base, bottleneck=4, labels="xy"),
        random_adapter("b", lora(), base, labels="xyz"),
    ]
    cases = input_cases(base.inputs, seed=0, shapes=SHAPES)
    out, references = folder / "bundle", CutRunner(base)
    build_bundle(base, adapters, out, references=references, cases=cases, variants=variants, bake=bake)
