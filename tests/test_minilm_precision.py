"""Layers of the real MiniLM in 8 bits and with fused operators: slots, switching, parity, what the precision costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from building import build_bundle, in_precision
from tiny_onnx import random_adapter
from transformers import AutoModel

from adapter_export.bundle.latency import beside
from adapter_export.bundle.proof.compare_arrays import Original
from adapter_export.bundle.proof.proof_plan import Reference, plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import BottleneckOptions, houlsby, pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.quantise.optimize import check_deviation, optimize_base
from adapter_export.onnx_backend.quantise.rewritten import deviations
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.bundle import Bundle
from adapter_export.runtime.graphs import run_session
from adapter_export.torch_backend.base.huggingface_folder import capture_folder
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import load_base

CASE = "batch3_sequence7_padded"
SHAPES = [{"batch": 3, "sequence": 7}]
LAYERS = 2


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxBase:
    """The first two of its six layers: each becomes the same."""
    folder = tmp_path_factory.mktemp("minilm")
    model = AutoModel.from_pretrained(minilm_folder, num_hidden_layers=LAYERS)
    model.save_pretrained(folder / "hf")
    capture_folder(folder / "hf", folder / "model.pt")
    export_onnx(load_base(folder / "model.pt"), folder / "model.onnx")
    return open_onnx(folder / "model.onnx")


def two_adapters(base: OnnxBase) -> list[Adapter]:
    """Return adapters with weights of the size reached by training: their update is a fraction of `h`."""
    made = [
        random_adapter("a", houlsby(BottleneckOptions("gelu")), base, bottleneck=16, labels="abcdef"),
        random_adapter("b", pfeiffer(BottleneckOptions("relu")), base, labels="ab"),
    ]
    quarter = np.float32(0.25)
    return [replace(each, weights={name: value * quarter for name, value in each.weights.items()}) for each in made]


@pytest.mark.parametrize("precision", ["int8", "int8-weights"])
def test_minilm_in_8_bits_passes_the_check(minilm: OnnxBase, tmp_path: Path, precision: str) -> None:
    (tmp_path / "base").mkdir()
    made = in_precision(minilm, precision, tmp_path / "base", int8_embeddings=precision != "int8")
    assert (tmp_path / "base" / "base.bin").stat().st_size < 0.29 * _bytes(minilm.model)
    adapters, reference = two_adapters(made), CutRunner(made)
    cases = input_cases(made.inputs, seed=1, shapes=SHAPES)
    manifest = build_bundle(made, adapters, tmp_path / "bundle", references=reference, cases=cases)
    assert (manifest.base, manifest.base_precision) == (minilm.fingerprint, precision)
    assert len(manifest.slots) == (2 + 1) * LAYERS * 4 + 2
    _switch(tmp_path / "bundle", cases[-1].arrays)
    plan = plan_check(tmp_path / "bundle", cases=[CASE])
    original = Original(CutRunner(minilm), plan.cases, "random inputs")
    report = prove(plan, Reference("base.onnx", reference), original=original)
    assert report.passed
    assert report.agreements is not None
    least = {"int8": 0.95, "int8-weights": 0.98}[precision]
    cosines = {(one.adapter, one.output): one.cosine for one in report.agreements.results}
    assert all(cosine is not None and cosine > least for cosine in cosines.values()), cosines


def test_a_precision_is_timed_beside_float32(minilm: OnnxBase, tmp_path: Path) -> None:
    found = beside(in_precision(minilm, "int8", tmp_path), minilm)
    assert found is not None
    assert 0 < found.low <= found.ratio <= found.high


def _bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _switch(folder: Path, inputs: dict[str, np.ndarray]) -> None:
    """A → B → A, bit for bit."""
    session = Bundle.open(folder).session()
    first, other, again = (session.run(inputs, name) for name in ("a", "b", "a"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["last_hidden_state"], other["last_hidden_state"])


def test_every_slot_of_int8_moves_the_logits(minilm: OnnxBase, tmp_path: Path) -> None:
    made = in_precision(minilm, "int8", tmp_path)
    adapter, _ = two_adapters(made)
    plan = plan_slots([adapter], made.sites)
    session, tensors = open_session(insert_slots(made, plan), made.folder), slot_tensors(plan, adapter)
    inputs = input_cases(made.inputs, seed=1, shapes=SHAPES)[0].arrays
    before = run_session(session, {**inputs, **tensors})["logits"]
    for name, tensor in tensors.items():
        after = run_session(session, {**inputs, **tensors, name: tensor * np.float32(-1.5)})["logits"]
        assert not np.array_equal(before, after), name


def test_int8_is_close_without_padding(minilm: OnnxBase, tmp_path: Path) -> None:
    """Ignore padded positions, where int8 is off by more than the size of most values."""
    made = in_precision(minilm, "int8", tmp_path)
    found, _ = deviations(minilm, made, input_cases(minilm.inputs, seed=1, lengths=minilm.lengths, max_tokens=7))
    assert found.output == "last_hidden_state"
    assert found.absolute < 0.1 * found.scale < found.padding
    assert not found.is_far


def test_minilm_with_fused_operators_passes_the_check(minilm: OnnxBase, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    made, fusions = optimize_base(minilm, tmp_path / "base")
    assert (fusions["attention"], fusions["bias_gelu"]) == (LAYERS, LAYERS)
    cases = input_cases(made.inputs, seed=1, shapes=SHAPES)
    for found in deviations(minilm, made, cases):
        check_deviation(found)
    adapters, reference = two_adapters(made), CutRunner(minilm)
    manifest = build_bundle(made, adapters, tmp_path / "bundle", references=reference, cases=cases)
    assert manifest.minimum_onnxruntime == "1.22"
    _switch(tmp_path / "bundle", cases[-1].arrays)
    report = prove(plan_check(tmp_path / "bundle", cases=[CASE]), Reference("x", reference))
    assert report.passed


def test_weights_are_in_blocks_that_leave_rows_alone(minilm: OnnxBase, tmp_path: Path) -> None:
    """A table of two rows, which is looked up and not multiplied, does not make them smaller."""
    made = in_precision(minilm, "int8-weights", tmp_path)
    blocks = {node.attributes.get_int("block_size", 0) for node in made.model.graph if node.op_type == "MatMulNBits"}
    assert blocks == {64}
