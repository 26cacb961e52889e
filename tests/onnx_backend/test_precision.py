"""Bases in every precision: the same sites, slots that can all be overridden, parity with the split base."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from building import build_bundle, in_precision
from click.testing import CliRunner
from onnx import numpy_helper
from onnx.utils import Extractor
from onnxruntime.quantization import QuantType, quantize_dynamic
from tiny_onnx import random_adapter, save_tiny, tiny_model, token_inputs

from adapter_export.bundle.proof.compare_arrays import Original
from adapter_export.bundle.proof.proof_plan import Reference, plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.bundle.report import Report
from adapter_export.cli.main import main
from adapter_export.errors import BaseModelError, UsageError
from adapter_export.format.manifest import Manifest
from adapter_export.format.precision import Precision, PrecisionName
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import BottleneckOptions, houlsby, pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, numerics, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.quantise.recipes import RECIPES
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.bundle import Bundle
from adapter_export.runtime.graphs import run_session

CHANGED: tuple[PrecisionName, ...] = ("fp16", "int8", "int8-weights", "int4-weights")
SHAPES = [{"batch": 1, "tokens": 1}, {"batch": 3, "tokens": 7}]


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


def adapters_of(base: OnnxBase) -> list[Adapter]:
    return [
        random_adapter("a", houlsby(BottleneckOptions("gelu")), base, labels="abc"),
        random_adapter("b", pfeiffer(BottleneckOptions("relu")), base, bottleneck=3, labels="ab"),
    ]


@pytest.fixture(scope="module", params=CHANGED)
def precision(request: pytest.FixtureRequest) -> PrecisionName:
    found: PrecisionName = request.param
    return found


@pytest.fixture(scope="module")
def made(precision: PrecisionName, base: OnnxBase, tmp_path_factory: pytest.TempPathFactory) -> OnnxBase:
    return in_precision(base, precision, tmp_path_factory.mktemp(precision))


@pytest.fixture(scope="module")
def bundle(made: OnnxBase, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    cases = input_cases(made.inputs, seed=1, shapes=SHAPES)
    return folder, build_bundle(made, adapters_of(made), folder, references=CutRunner(made), cases=cases)


@pytest.fixture(scope="module")
def report(made: OnnxBase, base: OnnxBase, bundle: tuple[Path, Manifest]) -> Report:
    plan = plan_check(bundle[0])
    original = Original(CutRunner(base), plan.cases, "random inputs")
    return prove(plan, Reference("tiny.onnx", CutRunner(made)), original=original)


def test_the_command_line_offers_the_precisions_of_the_format() -> None:
    refused = CliRunner().invoke(main, ["build", "model.onnx", "-o", "bundle", "--base-precision", "int3"])
    assert ", ".join(f"'{name}'" for name in get_args(PrecisionName)) in refused.stderr
    assert {"fp32", *RECIPES} == {*get_args(PrecisionName)}


@pytest.mark.extended
def test_the_root_logger_is_left_alone() -> None:
    """ONNX Runtime's quantizer configures it on import."""
    module = "adapter_export.onnx_backend.quantise.precision"
    code = f"import logging, {module}; print(logging.root.handlers, logging.root.level)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (found.stdout.split(), found.stderr) == (["[]", str(logging.WARNING)], "")


class TestBase:
    def test_converted_base_keeps_fingerprint_and_sites(self, made: OnnxBase, base: OnnxBase) -> None:
        assert (made.fingerprint, made.inputs, made.outputs) == (base.fingerprint, base.inputs, base.outputs)
        found, expected = ([(s.name, s.role, s.width, s.path) for s in b.sites.sublayers] for b in (made, base))
        assert found == expected

    def test_converted_base_computes_nearly_the_same(self, made: OnnxBase, base: OnnxBase) -> None:
        inputs = token_inputs(5, 3, 1)
        before, after = (run_session(open_session(b.model, b.folder), inputs)["hidden"] for b in (base, made))
        cosine = (before * after).sum() / np.linalg.norm(before) / np.linalg.norm(after)
        assert not np.array_equal(before, after)
        assert cosine > 0.97

    def test_quantized_weights_take_less_space(self, made: OnnxBase, base: OnnxBase) -> None:
        assert (made.folder / "base.bin").stat().st_size < (base.folder / "tiny.onnx.data").stat().st_size

    def test_fp32_is_the_base_itself(self, base: OnnxBase, tmp_path: Path) -> None:
        assert in_precision(base, "fp32", tmp_path) is base
        assert list(tmp_path.iterdir()) == []

    def test_embeddings_get_8_bits_only_if_asked(self, base: OnnxBase, tmp_path: Path) -> None:
        for name, embeddings in (("with", True), ("without", False)):
            (tmp_path / name).mkdir()
            made = in_precision(base, "int4-weights", tmp_path / name, int8_embeddings=embeddings)
            assert (numerics(made.model).precision.embeddings == "int8") == embeddings
            assert made.inputs == base.inputs

    def test_gemm_nodes_are_quantized(self, tmp_path: Path) -> None:
        """Test `Gemm`, torch's export of `Conv1D` and of a linear layer on two axes."""
        model = tiny_model(more=", float[batch, 16] pooled")
        first = numpy_helper.from_array(np.array(0), "first")
        weight = numpy_helper.from_array(np.eye(16, dtype=np.float32)[::-1].copy(), "pool_weight")
        bias = numpy_helper.from_array(np.ones(16, np.float32), "pool_bias")
        model.graph.initializer.extend([first, weight, bias])
        model.graph.node.extend(
            [
                onnx.helper.make_node("Gather", ["hidden", "first"], ["row"], axis=1),
                onnx.helper.make_node("Gemm", ["row", "pool_weight", "pool_bias"], ["pooled"], transB=1),
            ]
        )
        base = open_onnx(save_tiny(tmp_path, model))
        for precision in ("int8", "int8-weights"):
            (tmp_path / precision).mkdir()
            made = in_precision(base, precision, tmp_path / precision)
            assert Counter(node.op_type for node in made.model.graph)["Gemm"] == 0


class TestNumerics:
    def test_numerics_are_read_from_the_graph(self, precision: PrecisionName, made: OnnxBase) -> None:
        found, stored = numerics(made.model), "float16" if precision == "fp16" else "uint8"
        assert (found.precision.name, found.precision.activations, found.batch_invariant) == (precision, stored, True)

    def test_numerics_of_a_plain_base_are_float32(self, base: OnnxBase) -> None:
        found = numerics(base.model)
        assert (found.precision.name, found.precision.activations, found.batch_invariant) == ("fp32", "float32", True)

    def test_numerics_of_block_weights_with_float32_activations_are_recorded(
        self, base: OnnxBase, tmp_path: Path
    ) -> None:
        found = numerics(in_precision(base, "int4-weights", tmp_path, float32_activations=True).model)
        assert (found.precision, found.batch_invariant) == (Precision("int4-weights", "float32", "float32"), True)

    def test_recorded_batch_invariance_matches_measurement(self, tmp_path: Path) -> None:
        """Compare a single row with the same row in a batch whose other row has a first token 20 times as large."""
        model = tiny_model()
        table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
        large = numpy_helper.to_array(table).copy()
        large[1] *= 20
        table.CopyFrom(numpy_helper.from_array(large, "table"))
        base, inputs = open_onnx(save_tiny(tmp_path, model)), token_inputs(6, 6)
        inputs["input_ids"] = np.array([[7, 8, 9, 10, 11, 12], [1, 8, 9, 10, 11, 12]])
        dynamic = tmp_path / "dynamic.onnx"
        quantize_dynamic(base.path, dynamic, weight_type=QuantType.QInt8)
        own = [in_precision(base, precision, new_folder(tmp_path / precision)) for precision in CHANGED]
        for made in [*own, open_onnx(dynamic)]:
            session = open_session(made.model, made.folder)
            whole = run_session(session, inputs)["hidden"][:1]
            alone = run_session(session, {name: value[:1] for name, value in inputs.items()})["hidden"]
            assert (np.abs(whole - alone).max() < 0.004) == numerics(made.model).batch_invariant, made.path

    @pytest.mark.parametrize("precision", ["int8", "int8-weights", "int4-weights"], indirect=True)
    def test_quantized_layers_keep_non_finite_values(self, made: OnnxBase) -> None:
        """ONNX Runtime loses NaN when it rounds to 8 bits, and the results look like ordinary numbers."""
        layer = Extractor(onnx.load(made.folder / "base.onnx")).extract_model(["context0"], ["attention0"])
        session = open_session(ir.from_proto(layer), made.folder)
        right = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)
        for at in range(16):
            for wrong in (np.nan, np.inf, -np.inf):
                x = right.copy()
                x[1, 2, at] = wrong
                finite = np.isfinite(run_session(session, {"context0": x})["attention0"])
                assert not finite[1, 2].any()
                assert finite[0].all()
                assert finite[1, :2].all()

    @pytest.mark.parametrize("precision", ["int8", "int8-weights", "int4-weights"])
    def test_a_row_is_bit_for_bit_the_same_in_any_batch(self, tmp_path: Path, precision: PrecisionName) -> None:
        """Test odd numbers of tokens and columns long enough for the largest blocks, too."""
        base = open_onnx(save_tiny(tmp_path, tiny_model(width=256)))
        made = in_precision(base, precision, new_folder(tmp_path / "made"))
        session, inputs = open_session(made.model, made.folder), token_inputs(7, 7, 7)
        whole = run_session(session, inputs)["hidden"]
        for row in range(3):
            alone = run_session(session, {name: value[row : row + 1] for name, value in inputs.items()})["hidden"]
            assert np.array_equal(alone[0], whole[row])

    @pytest.mark.parametrize("precision", ["int8", "int8-weights"])
    def test_quantization_keeps_values_read_by_a_branch(self, tmp_path: Path, precision: PrecisionName) -> None:
        model = tiny_model(more=", float[2] picked")
        branch = onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["kept"], ["chosen"])],
            "branch",
            [],
            [onnx.helper.make_tensor_value_info("chosen", onnx.TensorProto.FLOAT, [2])],
        )
        yes = numpy_helper.from_array(np.array(True), "yes")
        kept = numpy_helper.from_array(np.array([3, 4], np.float32), "kept")
        model.graph.initializer.extend([yes, kept])
        model.graph.node.append(
            onnx.helper.make_node("If", ["yes"], ["picked"], then_branch=branch, else_branch=branch)
        )
        made = in_precision(open_onnx(save_tiny(tmp_path, model)), precision, new_folder(tmp_path / "made"))
        session = open_session(made.model, made.folder)
        assert run_session(session, token_inputs(5))["picked"].tolist() == [3, 4]

    @pytest.mark.parametrize("precision", ["int8"], indirect=True)
    def test_integers_fit_where_products_are_added_up_in_16_bits(self, made: OnnxBase) -> None:
        """Processors without VNNI add two byte products in 16 bits, and saturate."""
        weights = [
            value.const_value.numpy() for name, value in made.model.graph.initializers.items() if ".int8" in name
        ]
        assert len(weights) == 6 * 2
        assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) * 255 * 2 <= np.iinfo(np.int16).max


class TestBundle:
    def test_every_slot_can_be_overridden(self, made: OnnxBase) -> None:
        """`insert_slots` verifies it; here each slot is changed, and changes the outputs."""
        adapter, *_ = adapters_of(made)
        plan = plan_slots([adapter], made.sites)
        session = open_session(insert_slots(made, plan), made.folder)
        tensors, inputs, random = slot_tensors(plan, adapter), token_inputs(5, 3), np.random.default_rng(0)
        before = run_session(session, {**inputs, **tensors})["logits"]
        assert len(tensors) == len(plan.slots) == 4 * 4 + 2
        for name, tensor in tensors.items():
            moved = tensor + random.standard_normal(tensor.shape).astype(np.float32)
            after = run_session(session, {**inputs, **tensors, name: moved})["logits"]
            assert not np.array_equal(before, after), name

    def test_manifest_records_the_precision_and_its_reference(
        self, made: OnnxBase, base: OnnxBase, bundle: tuple[Path, Manifest]
    ) -> None:
        manifest = bundle[1]
        assert manifest.base == base.fingerprint
        assert manifest.base_precision == numerics(made.model).precision.name
        assert manifest.batch_invariant
        assert manifest.minimum_onnxruntime == ("1.23" if manifest.base_precision == "int8-weights" else "1.21")
        for golden in (manifest.golden, *(adapter.golden for adapter in manifest.adapters)):
            assert "for the base" in golden.reference
            assert manifest.base_precision not in ("fp16", "int8") or "float32" not in golden.reference

    def test_slots_are_float32(self, bundle: tuple[Path, Manifest]) -> None:
        graph = onnx.load(bundle[0] / "model.onnx", load_external_data=False).graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
        assert {types[slot.name] for slot in bundle[1].slots} == {onnx.TensorProto.FLOAT}
        assert types["hidden"] == types["logits"] == onnx.TensorProto.FLOAT

    def test_switching_leaves_no_trace(self, bundle: tuple[Path, Manifest]) -> None:
        session, inputs = Bundle.open(bundle[0]).session(), token_inputs(5, 3, 1)
        for first, second in (("a", "b"), ("b", None), (None, "a")):
            before, _, after = (session.run(inputs, name) for name in (first, second, first))
            assert all(np.array_equal(before[name], after[name]) for name in before)

    def test_bundle_matches_the_cut_base_of_the_same_precision(self, report: Report) -> None:
        assert report.passed
        assert report.coverage().left_out == ()
        assert {result.level for result in report.outputs} == {"none", "basic", "all"}

    def test_a_changed_weight_is_still_seen(self, made: OnnxBase, bundle: tuple[Path, Manifest]) -> None:
        """A budget for rounded activations is wide, but each site has a budget for its own arithmetic."""
        plan = plan_check(bundle[0])
        for each in plan.adapters:
            adapter, name = plan.bundle.source(each), "layers.0.ffn.up.weight"
            changed = replace(adapter, weights={**adapter.weights, name: adapter.weights[name] * np.float32(1.02)})
            plan.bundle._sources[each] = changed
        found = prove(plan, None)
        assert {result.name for result in found.sites if not result.passed} == {"layers.0.ffn"}

    def test_the_loss_against_float32_is_reported_and_no_fault(self, report: Report) -> None:
        assert report.agreements is not None
        found = {(result.adapter, result.output): result for result in report.agreements.results}
        assert set(found) == {(None, "hidden"), *((a, o) for a in "ab" for o in ("hidden", "logits"))}
        assert all(0 < result.absolute < result.scale for result in found.values())
        rows = sum(
            result.axes["batch"]
            for result in report.outputs
            if result.variant == "slots"
            and result.level == "all"
            and result.adapter == "a"
            and result.name == "logits"
            and result.against == "reference"
        )
        assert found["a", "logits"].rows == rows
        assert found["a", "logits"].agree is not None
        assert found["a", "hidden"].agree is None


class TestRefusals:
    @pytest.mark.parametrize("precision", ["int8"], indirect=True)
    def test_quantized_bases_cannot_be_converted_again(self, made: OnnxBase, tmp_path: Path) -> None:
        with pytest.raises(BaseModelError, match=r"is not in float32; found int8"):
            in_precision(made, "int4-weights", tmp_path)

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_int8_embeddings_are_refused_for_float_precisions(
        self, base: OnnxBase, tmp_path: Path, precision: PrecisionName
    ) -> None:
        with pytest.raises(UsageError, match="int8_embeddings"):
            in_precision(base, precision, tmp_path, int8_embeddings=True)

    def test_bases_without_quantizable_products_are_refused(self, tmp_path: Path) -> None:
        model = tiny_model()
        for node in model.graph.node:  # a product with another name, which no quantizer supports
            if node.op_type == "MatMul":
                node.op_type = "Einsum"
                weighted = any(node.input[1] == tensor.name for tensor in model.graph.initializer)
                node.attribute.append(
                    onnx.helper.make_attribute("equation", "bti,io->bto" if weighted else "bti,bio->bto")
                )
        base = open_onnx(save_tiny(tmp_path, model))
        (tmp_path / "out").mkdir()
        with pytest.raises(BaseModelError, match="no products that can be quantized"):
            in_precision(base, "int4-weights", tmp_path / "out")
