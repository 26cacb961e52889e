"""Nodes in lockstep: correct graphs pass; a planted fault is located and described, even in the base."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import partial_bases
import pytest
import torch
from once import once
from onnx import numpy_helper
from random_kinds import random_of_kind
from small_bundle import Built
from tiers import extended
from toolchain import skip_or_fail
from torch import nn

import adapter_export as ae
from adapter_export.bundle.bundle_reader import LEVEL, Graph, OpenedBundle
from adapter_export.bundle.golden.golden_vectors import check_cases
from adapter_export.bundle.proof.locate import fusion_of, guesses, trace, typical
from adapter_export.bundle.proof.lockstep import Lockstep
from adapter_export.bundle.proof.proof_plan import Reference, plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.bundle.proof.runtimes import check_providers, check_runtime
from adapter_export.bundle.report import Report, failures
from adapter_export.errors import UsageError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import houlsby
from adapter_export.numerics.runner import Arrays, Runner
from adapter_export.onnx_backend import onnx_runner as pieces
from adapter_export.onnx_backend.base.flow import module_path
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner, with_outputs
from adapter_export.providers import PROVIDERS, ProviderName
from adapter_export.runtime.graphs import Optimization, run_session
from schemas import validate

Plant = Callable[[ir.Model], object]


class Planted(OpenedBundle):
    """A bundle with a fault in its graphs, in memory."""

    plant: Plant

    @classmethod
    def with_fault(cls, folder: Path, plant: Plant) -> Planted:
        bundle = cls.open(folder)
        bundle.plant = plant
        return bundle

    def model(self, file: str) -> ir.Model:
        there, model = file in self._models, super().model(file)
        if not there:
            self.plant(model)
        return model

    def session(self, file: str, level: Optimization = LEVEL) -> ort.InferenceSession:
        if (file, level) not in self._sessions:
            self._sessions[file, level] = open_session(self.model(file), self.folder, optimize=level != "none")
        return self._sessions[file, level]


def node(model: ir.Model, output: str) -> ir.Node:
    return next(node for node in model.graph for value in node.outputs if value.name == output)


def behind(model: ir.Model, path: str, kind: str) -> ir.Node:
    """Return the operator of this kind that torch's exporter made for a module."""
    return next(node for node in model.graph if node.op_type == kind and module_path(node) == path)


def change_weight(model: ir.Model, node: ir.Node, at: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    value = node.inputs[at]
    assert value is not None
    assert value.const_value is not None
    value.const_value = ir.tensor(np.ascontiguousarray(change(value.const_value.numpy().copy())), name=value.name)


def set_to(node: ir.Node, attribute: str, value: float | str) -> None:
    node.attributes.add(ir.convenience.convert_attribute(attribute, value))


SELF, ACTIVATION = "encoder.layer.1.attention.self", "encoder.layer.1.intermediate.intermediate_act_fn"


@pytest.fixture(scope="module")
def torch_base(text_folder: Path) -> ae.Base:
    return ae.open_base(text_folder / "model.pt")


@pytest.fixture(scope="module")
def torch_runner(torch_base: ae.Base) -> Runner:
    from adapter_export.torch_backend.torch_runner import TorchRunner

    return TorchRunner(torch_base.torch, sites=torch_base.sites.map)


def walk(bundle: OpenedBundle, runner: Runner, adapter: str | None = None, variant: str = "slots") -> Lockstep:
    cases = check_cases(bundle.manifest, [])
    file = bundle.manifest.graphs[variant]
    return Lockstep(Graph(bundle, variant, file), runner, typical(cases), adapter, bundle.allowance(cases))


class TestOfATorchBase:
    def test_a_right_graph_passes_node_by_node(self, text_folder: Path, torch_runner: Runner) -> None:
        bundle = OpenedBundle.open(text_folder / "bundle")
        adapter = bundle.manifest.adapters[0].name
        cases = check_cases(bundle.manifest, [])
        graph = Graph(bundle, "slots", bundle.manifest.graphs["slots"])
        found = trace([graph], torch_runner, cases, [None, adapter], [])
        nodes = [record for one in found.findings for record in one.measurements]
        assert len(nodes) > 100
        assert [record.name for record in nodes if not record.passed] == []
        assert max(record.ratio for record in nodes) < 0.5
        assert {one.status for one in found.findings} == {"tested"}
        assert [one.check for one in found.findings].count("exposed values") == 2
        of_sites = [record.node.origin for record in nodes if record.node and record.node.origin.endswith("/result_h")]
        assert of_sites == [f"{site}/result_h" for site in bundle.source(adapter).placements]
        products = [record for record in nodes if record.node and "MatMul" in record.node.operators]
        assert any(record.path == "encoder.layer.1.output.dense" for record in products)
        assert all((record.node.line or "").startswith("transformers/") for record in products if record.path)
        assert all(record.node and record.node.cumulative is not None and record.node.witness for record in products)

    def test_a_graph_of_a_bank_is_taken_apart_alike(self, text_folder: Path, torch_runner: Runner) -> None:
        bundle = OpenedBundle.open(text_folder / "bundle")
        lockstep = walk(bundle, torch_runner, bundle.manifest.adapters[0].name, "bank")
        records = list(lockstep.local())
        assert len(records) > 50
        assert all(record.passed for record in records)

    @pytest.mark.parametrize(
        ("plant", "path", "words"),
        [
            (lambda at, of: change_weight(at, of("MatMul"), 1, lambda a: a.T), f"{SELF}.query", "is transposed"),
            (lambda at, of: change_weight(at, of("MatMul"), 1, lambda a: a[:, ::-1]), f"{SELF}.key", "exchanged along"),
            (lambda at, of: change_weight(at, of("MatMul"), 1, lambda a: a * 1.01), f"{SELF}.value", "scaled"),
            (lambda at, of: set_to(of("Gelu"), "approximate", "tanh"), ACTIVATION, "GELU by tanh"),
            (
                lambda at, of: set_to(of("LayerNormalization"), "epsilon", 1e-3),
                "encoder.layer.0.output.LayerNorm",
                "epsilon 1e-03, expected",
            ),
        ],
    )
    def test_a_fault_in_the_base_is_named(
        self, text_folder: Path, torch_runner: Runner, plant: Callable[..., object], path: str, words: str
    ) -> None:
        bundle = Planted.with_fault(
            text_folder / "bundle", lambda model: plant(model, lambda kind: behind(model, path, kind))
        )
        lockstep = walk(bundle, torch_runner)
        wrong = [record for record in lockstep.local() if not record.passed]
        assert len(wrong) == 1, [record.name for record in wrong]
        assert wrong[0].path == path
        assert words in next(guesses(lockstep, wrong[0]))
        assert wrong[0].node.witness is not None
        assert wrong[0].node.witness.found > 100 * wrong[0].node.witness.expected


class TestWhichSideIsWrong:
    """Use float64 as a third witness for a torch base."""

    def test_a_reference_that_is_off_is_named_as_such(self, text_folder: Path, torch_base: ae.Base) -> None:
        from adapter_export.torch_backend.torch_runner import TorchRunner

        class Off(TorchRunner):
            def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None = None) -> Arrays:
                return {name: value * np.float32(1.001) for name, value in super().run(inputs, adapter).items()}

        runner = Off(torch_base.torch, sites=torch_base.sites.map)
        bundle = OpenedBundle.open(text_folder / "bundle")
        report = proved(
            bundle, Reference("model.pt", runner), only=["base"], cases=["batch1_tokens7", "batch1_sequence7"]
        )
        (failure,) = failures(report)
        assert failure.location is not None
        assert failure.location.node is None
        assert failure.location.nodes > 50
        assert any("the reference is wrong" in line for line in failure.location.detail)


def proved(
    bundle: OpenedBundle, reference: Reference, *, only: list[str], cases: list[str], repro: Path | None = None
) -> Report:
    plan = plan_check(bundle, only=only, variants=["slots"])
    return prove(
        replace(
            plan,
            cases=tuple(case for case in plan.cases if case.name in cases),
            golden=tuple(golden.only(["none"]) for golden in plan.golden),
            repro=repro,
        ),
        reference,
    )


def skip(model: ir.Model) -> None:
    """Make the residual sum after the second layer's second sublayer read `h` instead of the adapter's result."""
    total, h = node(model, "total1"), node(model, "ffn1").outputs[0]
    total.replace_input_with(1, h)


class TestOfAnOnnxBase:
    def test_an_adapter_skipped_at_one_site_is_not_blamed_on_the_base(self, built: Built, tmp_path: Path) -> None:
        bundle = Planted.with_fault(built.folder, skip)
        reference = Reference(str(built.model), CutRunner(built.base))
        report = proved(bundle, reference, only=["tone"], cases=["batch1_tokens7"], repro=tmp_path / "repro")
        (failure,) = failures(report)
        assert failure.culprit is None, "each site computes what it should"
        assert failure.location is not None
        assert failure.location.node is not None
        assert failure.location.node.name == "total1"
        assert failure.location.guess is not None
        assert "the adapter is skipped: the step reads `ffn1` of site `layers.1.ffn`" in failure.location.guess
        assert failure.location.detail[-1].startswith("error against float64: bundle ")
        assert failure.location.detail[-1].endswith(": the bundle is wrong")
        owed = {one.id for one in report.findings if one.status == "failed"}
        assert "node/model.onnx/total1" in owed
        assert not [one for one in owed if one.startswith("node/") and not one.endswith("total1")]
        validate(json.loads(json.dumps(report.to_json(), allow_nan=False)), "check-report")
        self.check_repro(Path(failure.location.repro or ""))

    def check_repro(self, folder: Path) -> None:
        """Run the test case in ONNX's layout, and verify that it fails."""
        data = folder / "test_data_set_0"
        session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        read = [onnx.load_tensor(data / f"input_{at}.pb") for at in range(len(session.get_inputs()))]
        feeds = {each.name: numpy_helper.to_array(each) for each in read}
        assert sorted(feeds) == ["ffn1", "norm1"]
        expected = numpy_helper.to_array(onnx.load_tensor(data / "output_0.pb"))
        (found,) = session.run(None, feeds)
        assert np.abs(found - expected).max() > 1e-2
        assert (folder / "command.txt").read_text("utf-8").startswith("adapter-export check ")
        assert json.loads((folder / "versions.json").read_bytes())["onnxruntime"] == ort.__version__
        assert json.loads((folder / "report.json").read_bytes())["node"]["name"] == "total1"

    def test_faults_inactive_on_the_default_case_are_located(self, built: Built) -> None:
        bundle = OpenedBundle.open(built.folder)
        file, tone = bundle.manifest.graphs["slots"], bundle.tensors("tone")
        plan = plan_check(bundle)
        relu = next(str(each.outputs[0].name) for each in bundle.model(file).graph if each.op_type == "Relu")
        session = open_session(with_outputs(bundle.model(file), [relu]), bundle.folder, optimize=False)
        most = {case.name: run_session(session, {**case.arrays, **tone})[relu].max(axis=(0, 1)) for case in plan.cases}
        quiet = most[plan.probe.name]
        loud = max(most, key=lambda case: (most[case] - quiet).max())
        unit = int((most[loud] - quiet).argmax())
        assert quiet[unit] < most[loud][unit]

        def stop(model: ir.Model) -> None:
            """Clip a unit at its largest value in the case for the sites."""
            active = node(model, relu)
            bound = np.full(quiet.shape, np.inf, np.float32)
            bound[unit] = quiet[unit]
            held = ir.Value(name="bound", const_value=ir.tensor(bound, name="bound"))
            held.type, held.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(bound.shape)
            model.graph.register_initializer(held)
            stopped = ir.Node("", "Min", [active.outputs[0], held], name="stopped")
            stopped.outputs[0].name, stopped.outputs[0].type = "stopped", active.outputs[0].type
            ir.convenience.replace_all_uses_with(active.outputs[0], stopped.outputs[0])
            stopped.replace_input_with(0, active.outputs[0])
            model.graph.insert_after(active, stopped)

        reference = Reference(str(built.model), CutRunner(built.base))
        cases = [plan.probe.name, loud]
        report = proved(Planted.with_fault(built.folder, stop), reference, only=["tone"], cases=cases)
        (failure,) = failures(report)
        assert failure.case == loud
        assert failure.culprit is not None
        assert failure.culprit.case == loud
        assert relu.startswith(f"adapter.{failure.culprit.name}")

    def test_tensors_of_another_adapter_are_recognised(self, built: Built) -> None:
        class Mixed(OpenedBundle):
            def tensors(self, name: str | None) -> dict[str, np.ndarray]:
                return super().tensors("mood" if name == "tone" else name)

        lockstep = walk(Mixed.open(built.folder), CutRunner(built.base), "tone")
        wrong = [record for record in lockstep.local() if not record.passed]
        assert [record.node.origin for record in wrong] == ["layers.0.ffn/result_h", "layers.1.ffn/result_h"]
        assert next(guesses(lockstep, wrong[0])) == "the tensors belong to `mood`"

    def test_nan_never_passes(self, built: Built) -> None:
        def spoil(values: np.ndarray) -> np.ndarray:
            values[0, 0] = np.nan
            return values

        bundle = Planted.with_fault(built.folder, lambda model: change_weight(model, node(model, "up1"), 1, spoil))
        wrong = [record for record in walk(bundle, CutRunner(built.base)).local() if not record.passed]
        assert [record.name for record in wrong] == ["up1"]
        assert "NaN where the reference is finite" in wrong[0].faults[0]

    def test_pieces_give_what_the_whole_gives(self, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
        bundle = OpenedBundle.open(built.folder)
        whole = list(walk(bundle, CutRunner(built.base), "topic").local())
        monkeypatch.setattr(pieces, "PIECE_BYTES", 2100)
        lockstep = walk(bundle, CutRunner(built.base), "topic")
        assert len(lockstep.steps.alone(lockstep.known)) > 3
        records, exposing = lockstep.cumulative(list(lockstep.local()))
        assert [(one.name, one.absolute) for one in records] == [(one.name, one.absolute) for one in whole]
        assert exposing.passed
        assert len(records) > 40
        assert all(one.passed for one in records)


def test_the_fusion_that_changes_a_result_is_found_among_all(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        gelu (float[rows, 8] x) => (float[rows, 8] y) {
            root = Constant <value = float {1.4142135}> ()
            one = Constant <value = float {1.0}> ()
            half = Constant <value = float {0.5}> ()
            part = Div(x, root)
            error = Erf(part)
            share = Add(error, one)
            product = Mul(x, share)
            y = Mul(product, half)
        }"""
    )
    feeds = {"x": np.random.default_rng(0).standard_normal((64, 8), np.float32)}
    assert (fusion_of(ir.from_proto(model), tmp_path, feeds, "y") or "").startswith("GeluFusion")
    model.graph.node.pop()
    model.graph.output[0].name = "product"
    assert fusion_of(ir.from_proto(model), tmp_path, feeds, "product") is None, "no fusion"


@pytest.fixture(scope="module")
@extended
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the oldest supported ONNX Runtime."""

    def install(folder: Path) -> None:
        call = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / "site")]
        done = subprocess.run([*call, "onnxruntime==1.21.1"], capture_output=True, text=True, check=False)
        if done.returncode:
            skip_or_fail(f"onnxruntime 1.21.1 cannot be installed: {done.stderr.strip()[-200:]}")
        script = folder / "python"
        script.write_text(f'#!/bin/sh\nPYTHONPATH="$(dirname "$0")/site" exec {sys.executable} "$@"\n')
        script.chmod(0o755)

    return once(tmp_path_factory, "old_runtime", install) / "python"


class TestAnotherRuntime:
    def test_other_providers_are_verified_or_not_available(self, built: Built) -> None:
        bundle = OpenedBundle.open(built.folder)
        golden = [bundle.golden(name) for name in bundle.names]
        if set(ort.get_available_providers()) <= {"CPUExecutionProvider", "AzureExecutionProvider"}:
            (owed,) = check_providers(bundle, golden)
            assert (owed.id, owed.status) == ("providers/others", "unverified")
            assert "has only the CPU's" in owed.detail
        found = {one.subject: one for one in check_providers(bundle, golden, [*PROVIDERS])}
        assert [*found] == [*PROVIDERS]
        assert {found[name].status for name in ("cpu", "openvino")} == {"tested"}
        if "CoreMLExecutionProvider" not in ort.get_available_providers():
            assert found["coreml"].status == "unverified"
            assert found["coreml"].detail.startswith("`coreml` is not available here: install onnxruntime, on macOS")

    @pytest.mark.parametrize("name", ["cpu", "openvino"])
    def test_a_provider_with_other_results_fails(self, built: Built, name: ProviderName) -> None:
        bundle = OpenedBundle.open(built.folder)
        golden = [bundle.golden(name) for name in bundle.names]
        wrong = replace(golden[0], outputs=[{"hidden": each["hidden"]} for each in golden[1].outputs])
        (owed,) = check_providers(bundle, [wrong], [name])
        assert (owed.id, owed.status) == (f"providers/{name}", "failed")
        assert "exceeds the budget" in owed.detail

    def test_golden_vectors_hold_in_the_oldest_release(self, old_python: Path, built: Built) -> None:
        bundle = OpenedBundle.open(built.folder)
        graph = Graph(bundle, "slots", bundle.manifest.graphs["slots"])
        found = list(check_runtime(str(old_python), graph, [bundle.golden(name) for name in bundle.names]))
        assert [(one.subject, one.status) for one in found] == [
            (f"onnxruntime 1.21.1, {name or 'base'}", "tested") for name in bundle.names
        ]
        wrong = replace(bundle.golden("tone"), outputs=[{}, *bundle.golden("mood").outputs[1:]])
        (failed,) = check_runtime(str(old_python), graph, [wrong])
        assert failed.status == "failed"
        assert "exceeds the budget" in failed.detail

    @pytest.mark.starts_program
    @pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false"])
    def test_an_unusable_second_python_is_refused(self, built: Built, python: str) -> None:
        bundle = OpenedBundle.open(built.folder)
        graph = Graph(bundle, "slots", bundle.manifest.graphs["slots"])
        with pytest.raises(UsageError, match="the other Python cannot run the graph"):
            list(check_runtime(python, graph, [bundle.golden(None)]))


class Strided(nn.Module):
    """Reads samples; a convolution makes the tokens, so that their number is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Conv1d(1, 16, 3, 2)
        self.blocks = nn.Sequential(partial_bases.Block(), partial_bases.Block())

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.frames(samples[:, None]).transpose(1, 2))


@extended
def test_build_and_check_take_a_model_that_computes_its_output_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = ae.capture(
        Strided().eval(),
        tmp_path / "base.pt",
        example_inputs={"samples": torch.randn(2, 20)},
        axes={"samples": {0: "batch", 1: "samples"}},
        lengths=["samples=5.."],
    )
    assert base.outputs[0].axes[1] not in {"samples", *range(100)}
    adapter = random_of_kind("random", houlsby().with_widths(b=4), base.sites.map, base.fingerprint)
    report = ae.check(ae.build(base, [adapter], tmp_path / "bundle"), against=base)
    report.raise_for_failure()
