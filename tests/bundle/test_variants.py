from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from building import build_bundle
from heard import Heard
from inner_norm import with_inner_norm
from tiny_onnx import random_adapter, token_inputs

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.proof.prove import prove_new
from adapter_export.errors import AdapterError, BaseModelError, ParityError, UsageError
from adapter_export.format.manifest import GRAPH_VARIANTS, Manifest
from adapter_export.format.manifest_json import read_manifest
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import (
    BottleneckOptions,
    classification_head,
    houlsby,
    parallel,
    pfeiffer,
)
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.rewrite.bank_graph import bank_rows
from adapter_export.onnx_backend.slots import head_sums, plan_slots
from adapter_export.runtime.bank import MASK_BELOW

Run = Mapping[str, np.ndarray]

ROWS = [None, "wide", "narrow", "first", "plain"]


def _adapters(base: OnnxBase) -> list[Adapter]:
    normed = BottleneckOptions(activation="sigmoid", norm_before=True, norm_after=True)
    return [
        random_adapter("wide", houlsby(), base, bottleneck=8, labels=["a", "b", "c"]),
        random_adapter("narrow", pfeiffer(normed), base, bottleneck=3, labels=["x", "y"]),
        random_adapter("first", houlsby(), base, bottleneck=2, labels=["p", "q"], head=classification_head("first")),
        random_adapter("plain", parallel(), base, bottleneck=5),
    ]


@pytest.fixture(scope="module")
def bundle(base: OnnxBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("variants") / "bundle"
    _build(base, _adapters(base), out, variants=list(GRAPH_VARIANTS), bake=["wide", "narrow"])
    return out


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def _build(base: OnnxBase, adapters: list[Adapter], out: Path, **settings: object) -> Manifest:
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 3, "tokens": 4}, {"batch": 1, "tokens": 1}])
    return build_bundle(base, adapters, out, references=CutRunner(base), cases=cases, **settings)  # type: ignore[arg-type]


def _session(bundle: Path, file: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(bundle / file), options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, feeds: Run) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _by_slots(bundle: Path, inputs: Run, adapter: str | None) -> dict[str, np.ndarray]:
    tensors = {} if adapter is None else read_tensors(bundle / f"adapters/{adapter}.safetensors")
    return _run(_session(bundle, "model.onnx"), {**inputs, **tensors})


def test_every_graph_shares_the_weights_of_the_base(bundle: Path, manifest: Manifest) -> None:
    files = [*manifest.graphs.values(), *(adapter.baked for adapter in manifest.adapters if adapter.baked)]
    assert len(files) == 6
    for file in files:
        model = ir.load(bundle / file)
        tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
        stored = {tensor.location for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
        assert stored == {"base.bin"} | ({"bank.bin"} if file in ("model.bank.onnx", "model.fanout.onnx") else set())
        assert (bundle / "base.bin").exists()


def test_required_inputs_give_what_slots_give(bundle: Path, manifest: Manifest) -> None:
    session, inputs = _session(bundle, manifest.graphs["inputs"]), token_inputs(4, 2)
    neutral = {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in manifest.slots}
    assert {value.name for value in session.get_inputs()} == set(inputs) | set(neutral)
    hidden = _run(session, {**inputs, **neutral})["hidden"]
    assert np.allclose(hidden, _by_slots(bundle, inputs, None)["hidden"], atol=1e-6)
    tensors = read_tensors(bundle / "adapters/wide.safetensors")
    assert np.allclose(
        _run(session, {**inputs, **tensors})["logits"], _by_slots(bundle, inputs, "wide")["logits"], atol=1e-6
    )


class TestBank:
    def test_each_row_runs_through_its_own_adapter(self, bundle: Path, manifest: Manifest) -> None:
        assert manifest.bank is not None
        assert list(manifest.bank.rows) == ROWS
        inputs = token_inputs(4, 2, 3, 4, 1, 4, 2, seed=3)
        chosen = [3, 0, 1, 2, 4, 1, 3]
        found = _run(_session(bundle, "model.bank.onnx"), {**inputs, "adapter_ids": np.array(chosen)})
        for row, at in enumerate(chosen):
            alone = _by_slots(bundle, {name: array[row : row + 1] for name, array in inputs.items()}, ROWS[at])
            assert np.allclose(found["hidden"][row], alone["hidden"][0], atol=2e-6)
            assert np.abs(found["hidden"][row] - _by_slots(bundle, inputs, ROWS[at - 1])["hidden"][row]).max() > 0.1

    def test_classes_that_an_adapter_lacks_are_masked(self, bundle: Path) -> None:
        inputs = token_inputs(4, 2, 3, seed=4)
        logits = _run(_session(bundle, "model.bank.onnx"), {**inputs, "adapter_ids": np.array([1, 2, 3])})["logits"]
        assert logits.shape == (3, 3)
        for row, (name, width) in enumerate([("wide", 3), ("narrow", 2), ("first", 2)]):
            expected = _by_slots(bundle, inputs, name)["logits"][row]
            assert np.allclose(logits[row, :width], expected, atol=2e-6)
            assert (logits[row, width:] < MASK_BELOW).all()
            assert np.isfinite(logits).all()

    @pytest.mark.parametrize("wrong", [-1, -5, len(ROWS), 2**40])
    def test_adapter_ids_out_of_range_are_errors(self, bundle: Path, wrong: int) -> None:
        session = _session(bundle, "model.bank.onnx")
        with pytest.raises(Exception, match=r"(?i)indices element out of data bounds"):
            session.run(None, {**token_inputs(4, 2), "adapter_ids": np.array([1, wrong])})

    def test_a_larger_bank_is_fed_at_run_time(self, bundle: Path, manifest: Manifest) -> None:
        assert manifest.bank is not None
        model = ir.load(bundle / "model.bank.onnx")
        values = {tensor.name: model.graph.initializers[tensor.name].const_value for tensor in manifest.bank.tensors}
        held = {name: value.numpy() for name, value in values.items() if value is not None}
        twice = {name: np.concatenate([array, array]) for name, array in held.items()}
        session, inputs = _session(bundle, "model.bank.onnx"), token_inputs(4, 2, 3)
        one = _run(session, {**inputs, "adapter_ids": np.array([1, 2, 0])})
        other = _run(session, {**inputs, **twice, "adapter_ids": np.array([6, 7, 5])})
        assert np.array_equal(one["hidden"], other["hidden"])

    def test_bank_matches_slots_for_one_row_of_one_token(self, bundle: Path) -> None:
        inputs = token_inputs(1)
        found = _run(_session(bundle, "model.bank.onnx"), {**inputs, "adapter_ids": np.array([4])})
        assert np.allclose(found["hidden"], _by_slots(bundle, inputs, "plain")["hidden"], atol=2e-6)


def test_a_baked_adapter_needs_no_feed(bundle: Path, manifest: Manifest) -> None:
    inputs = token_inputs(4, 2)
    for name in ("wide", "narrow"):
        (file,) = [adapter.baked for adapter in manifest.adapters if adapter.name == name]
        assert file is not None
        session = _session(bundle, file)
        assert not session.get_overridable_initializers()
        assert np.allclose(_run(session, inputs)["logits"], _by_slots(bundle, inputs, name)["logits"], atol=2e-6)


class TestRefusals:
    def test_baking_an_unknown_adapter_is_refused(self, base: OnnxBase, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no adapter has this name"):
            _build(base, _adapters(base), tmp_path / "bundle", bake=["nobody"])
        assert not list(tmp_path.iterdir())

    def test_a_norm_over_the_bottleneck_cannot_be_filled_up(self, base: OnnxBase) -> None:
        adapters = [with_inner_norm(random_adapter(name, pfeiffer(), base, bottleneck=width)) for name, width in
                    (("wide", 6), ("narrow", 3))]  # fmt: skip
        plan = plan_slots(adapters, base.sites)
        with pytest.raises(AdapterError, match="cannot share a bank with a wider one"):
            bank_rows(plan, head_sums(plan, ["hidden"]), adapters)

    def test_base_without_a_dynamic_batch_is_built_without_bank(self, base: OnnxBase, tmp_path: Path) -> None:
        records = tuple(replace(record, axes=(2, *record.axes[1:])) for record in base.inputs)
        model, heard = base.model.clone(), Heard()
        for value in model.graph.inputs:
            value.shape = ir.Shape([2, *value.shape[1:]])
        fixed = replace(base, inputs=records, model=model)
        manifest = _build(fixed, _adapters(base), tmp_path / "usual", reporter=heard)
        assert (set(manifest.graphs), manifest.bank) == ({"slots", "inputs"}, None)
        assert "lacks a dynamic batch" in heard.notes[0]
        with pytest.raises(BaseModelError, match="lacks a dynamic batch"):
            _build(fixed, _adapters(base), tmp_path / "asked", variants=["bank"])


@pytest.mark.parametrize("variant", ["inputs", "bank"])
def test_a_graph_that_computes_something_else_is_found(
    bundle: Path, manifest: Manifest, variant: str, tmp_path: Path
) -> None:
    """Another variant's graph is changed; the golden vectors of the graph with slots still pass."""
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    model = ir.load(folder / manifest.graphs[variant])
    act = next(node for node in model.graph if node.op_type == "Relu" and node.name.startswith("adapter."))
    act.op_type = "Tanh"
    ir.save(model, folder / manifest.graphs[variant])
    with pytest.raises(ParityError, match="deviation"):
        prove_new(OpenedBundle.open_staged(folder, manifest))
