"""Golden data expose an adapter that is applied only partly: by vectors if budgets are narrow, else by parts."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import build_bundle, in_precision
from heard import Heard
from tampering import edit, edit_adapter, rehash, unrecorded
from tiny_onnx import random_adapter, save_tiny

import adapter_export as ae
from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.change import add_adapters, remove_adapters
from adapter_export.bundle.golden.neighbours import ENOUGH
from adapter_export.bundle.golden.separation import Fault, faults_of
from adapter_export.bundle.proof.proof_plan import plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.bundle.report import Report
from adapter_export.errors import TensorError
from adapter_export.format.manifest import AdapterRecord
from adapter_export.format.manifest_json import read_manifest
from adapter_export.format.precision import PrecisionName
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import houlsby, lora, pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.disturbed import disturbed
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime.self_check import projection

SHAPES = [{"batch": 1, "tokens": 1}, {"batch": 2, "tokens": 9}, {"batch": 3, "tokens": 5}]
PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "fp16", "int8", "int8-weights", "int4-weights")


def _base(folder: Path, precision: PrecisionName) -> OnnxBase:
    base = open_onnx(save_tiny(folder))
    return base if precision == "fp32" else in_precision(base, precision, folder)


def _adapters(base: OnnxBase) -> list[Adapter]:
    return [
        random_adapter("a", houlsby(), base, bottleneck=4, labels="xy"),
        random_adapter("b", lora(), base, labels="xyz"),
        random_adapter("c", pfeiffer(), base, bottleneck=8, labels="pqr"),
    ]


def _build(base: OnnxBase, adapters: list[Adapter], out: Path, **settings: Any) -> Path:
    cases = input_cases(base.inputs, seed=0, shapes=SHAPES)
    build_bundle(base, adapters, out, references=CutRunner(base), cases=cases, **settings)
    return out


@pytest.fixture(scope="module", params=PRECISIONS)
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in each precision; do not change it."""
    folder = tmp_path_factory.mktemp(request.param)
    base = _base(folder, request.param)
    return _build(base, _adapters(base), folder / "bundle", bake=["a"])


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> OnnxBase:
    return _base(tmp_path_factory.mktemp("base"), "int8")


@pytest.fixture(scope="module")
def built(int8: OnnxBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in 8 bits; do not change it."""
    variants = ["slots", "inputs", "bank", "fanout"]
    return _build(int8, _adapters(int8), tmp_path_factory.mktemp("int8") / "bundle", variants=variants, bake=["a"])


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "bundle")


def _verify(folder: Path) -> Report:
    return prove(plan_check(folder, quick=True), None)


def _detail(report: Report, name: str, subject: str) -> tuple[bool, str]:
    return next((one.passed, one.detail) for one in report.findings if (one.check, one.subject) == (name, subject))


def _by_vectors(bundle: OpenedBundle, name: str, fault: Fault) -> float:
    golden = bundle.golden(name)
    found = bundle.run_slots([{**case.arrays, **fault.tensors} for case in golden.cases])
    return max(
        float(np.abs(outputs[output] - expected[output]).max()) / budget.absolute
        for outputs, expected in zip(found, golden.outputs, strict=True)
        for output, budget in golden.budgets.items()
    )


def _by_parts(bundle: OpenedBundle, name: str, fault: Fault) -> float:
    parts = bundle.parts(name)
    if parts is None:
        return 0.0
    found = bundle.run_slots([{**case.arrays, **fault.tensors} for case in parts.cases])
    return max(abs(value) / part.limit for value, part in zip(parts.values(found), parts.parts, strict=True))


def _faults(bundle: OpenedBundle) -> Iterator[tuple[AdapterRecord, Fault]]:
    for record in bundle.manifest.adapters:
        yield from ((record, fault) for fault in faults_of(bundle, record.name))


class TestEveryFaultShows:
    def test_golden_data_expose_faults_in_each_precision(self, each: Path) -> None:
        bundle = OpenedBundle.open(each, copy=False)
        for record, fault in _faults(bundle):
            separation = record.golden.separation
            assert separation is not None
            shown = max(_by_vectors(bundle, record.name, fault), _by_parts(bundle, record.name, fault))
            assert shown > 1 or fault.name in separation.weak, (record.name, fault.name, shown)
            assert shown > 0.9 * separation.least, (record.name, fault.name)

    def test_faults_cover_every_site_layer_and_head(self, each: Path) -> None:
        bundle = OpenedBundle.open(each, copy=False)
        layers, sites = {"layer 0 off", "layer 1 off"}, ["attention", "ffn"]
        names = {fault.name for fault in faults_of(bundle, "a")}
        own = {f"layers.{layer}.{site} off" for layer in range(2) for site in sites}
        assert names == {*own, *layers, "head off", "no adapter"}

    def test_the_bundle_itself_passes(self, each: Path) -> None:
        _verify(each).raise_for_failure()

    def test_narrow_budgets_need_no_parts(self, tmp_path: Path) -> None:
        base = _base(tmp_path, "fp32")
        for record in read_manifest(_build(base, _adapters(base), tmp_path / "bundle")).adapters:
            assert record.golden.parts is None
            assert record.golden.separation is not None
            assert record.golden.separation.least > 100 * ENOUGH

    def test_golden_parts_show_faults_hidden_from_vectors(self, built: Path) -> None:
        bundle = OpenedBundle.open(built, copy=False)
        hidden = [(one.name, each) for one, each in _faults(bundle) if _by_vectors(bundle, one.name, each) <= 1]
        assert len(hidden) > 3
        assert all(_by_parts(bundle, name, fault) > 1 for name, fault in hidden)


class TestVerify:
    @pytest.mark.parametrize("site", ["layers.0.attention", "layers.1.ffn"])
    def test_verify_names_a_site_that_is_off(self, bundle: Path, site: str) -> None:
        neutral = OpenedBundle.open(bundle, copy=False).tensors(None)

        def off(tensors: dict[str, np.ndarray]) -> None:
            tensors.update({slot.name: neutral[slot.name] for slot in read_manifest(bundle).slots if slot.site == site})

        edit_adapter(bundle, "a", off)
        rehash(bundle, unrecorded)
        report = _verify(bundle)
        assert all(one.passed for one in report.outputs if one.variant in ("slots", "inputs"))
        passed, detail = _detail(report, "golden parts", "a")
        assert not passed
        assert f"`{site} off` in `model.onnx`" in detail
        assert "model.bank.onnx" not in detail  # the bank has separate tensors
        assert _detail(report, "golden parts", "b")[0]

    def test_inspect_shows_the_separation(self, built: Path) -> None:
        table = next(one for one in ae.inspect(built).tables if one.title == "separation of golden data")
        shown = {str(row[0]): [str(cell) for cell in row[1:]] for row in table.rows}
        for record in read_manifest(built).adapters:
            separation = record.golden.separation
            assert separation is not None
            assert separation.nearest is not None
            assert shown[record.name][:2] == [f"{separation.least:.3g}", separation.fault]
            assert shown[record.name][3] == separation.nearest.adapter

    def test_nan_in_golden_parts_fails_verification(self, bundle: Path) -> None:
        record = next(one for one in read_manifest(bundle).adapters if one.name == "a").golden.parts
        assert record is not None
        key = f"{record.cases[0]}.output.{record.parts[0].output}"
        edit(bundle / record.path, lambda tensors: tensors[key].fill(np.nan))
        rehash(bundle)
        passed, detail = _detail(_verify(bundle), "golden parts", "a")
        assert not passed
        assert "nan" in detail

    def test_verify_reports_the_separation_of_faults(self, bundle: Path) -> None:
        separation = read_manifest(bundle).adapters[0].golden.separation
        assert separation is not None
        passed, detail = _detail(_verify(bundle), "separation", "a")
        assert passed
        assert f"`{separation.fault}`, moves the outputs by {separation.least:.3g} times" in detail

    @pytest.mark.parametrize("change", ["lacks an input", "lacks weights", "another type", "another shape", "more"])
    def test_an_incomplete_file_is_refused(self, bundle: Path, change: str) -> None:
        record = next(one for one in read_manifest(bundle).adapters if one.name == "a").golden.parts
        assert record is not None
        case = record.cases[0]
        weights = f"{case}.part.0"

        def damage(tensors: dict[str, np.ndarray]) -> None:
            if change == "lacks an input":
                del tensors[f"{case}.input.input_ids"]
            elif change == "lacks weights":
                for name in record.cases:
                    tensors.pop(f"{name}.part.0", None)
            elif change == "another type":
                tensors[weights] = tensors[weights].astype(np.float32)
            elif change == "another shape":
                tensors[weights] = tensors[weights][:1, :1]
            else:
                tensors["more"] = np.zeros(1, np.int8)

        edit(bundle / record.path, damage)
        rehash(bundle)
        with pytest.raises(TensorError, match="do not match their cases"):
            OpenedBundle.open(bundle).parts("a")


class TestWeakFaults:
    def test_build_names_weak_faults(self, int8: OnnxBase, tmp_path: Path) -> None:
        strong = random_adapter("a", houlsby(), int8, bottleneck=4, labels="xy")
        up = "layers.1.ffn.up"
        faint = {
            key: value * np.float32(1e-4) if key.startswith(up) else value for key, value in strong.weights.items()
        }
        heard = Heard()
        folder = _build(int8, [replace(strong, weights=faint)], tmp_path / "bundle", reporter=heard)
        separation = read_manifest(folder).adapters[0].golden.separation
        assert separation is not None
        assert separation.weak == ("layers.1.ffn off",)
        assert separation.least < ENOUGH
        assert any("golden data of `a` barely show `layers.1.ffn off`" in note for note in heard.notes)
        owed = {one.id: one.status for one in _verify(folder).findings}
        assert owed["faults-barely-shown/a"] == "unverified"

    def test_build_notes_an_adapter_that_is_almost_another(self, int8: OnnxBase, tmp_path: Path) -> None:
        one = random_adapter("a", houlsby(), int8, bottleneck=4, labels="xy")
        near = {key: value * np.float32(1 + 3e-7) for key, value in one.weights.items()}
        heard = Heard()
        folder = _build(int8, [one, replace(one, name="b", weights=near)], tmp_path / "bundle", reporter=heard)
        nearest = [
            record.golden.separation.nearest for record in read_manifest(folder).adapters if record.golden.separation
        ]
        assert [each.adapter if each else None for each in nearest] == ["b", "a"]
        assert all(each is not None and each.separation < ENOUGH for each in nearest)
        assert any("barely show `b` instead" in note for note in heard.notes)

    def test_the_same_adapter_twice_is_no_fault(self, int8: OnnxBase, tmp_path: Path) -> None:
        one = random_adapter("a", houlsby(), int8, bottleneck=4, labels="xy")
        folder = _build(int8, [one, replace(one, name="b")], tmp_path / "bundle")
        for record in read_manifest(folder).adapters:
            assert record.golden.separation is not None
            assert record.golden.separation.nearest is None


class TestChange:
    def test_golden_parts_follow_added_and_removed_adapters(self, bundle: Path, int8: OnnxBase) -> None:
        new = random_adapter("new", houlsby(), int8, bottleneck=6, labels="uv")
        before = {one.name: one.golden for one in read_manifest(bundle).adapters}
        after = add_adapters(bundle, [new], references=CutRunner(int8))
        golden = next(one.golden for one in after.adapters if one.name == "new")
        assert golden.parts is not None
        assert golden.separation is not None
        assert (bundle / golden.parts.path).exists()
        assert all(one.golden.parts == before[one.name].parts for one in after.adapters if one.name != "new")
        _verify(bundle).raise_for_failure()
        remove_adapters(bundle, ["new", "b"])
        assert not (bundle / golden.parts.path).exists()
        for record in read_manifest(bundle).adapters:
            nearest = record.golden.separation.nearest if record.golden.separation else None
            assert nearest is not None
            assert nearest.adapter in ("a", "c")
        _verify(bundle).raise_for_failure()


class TestProjection:
    def test_projection_accumulates_in_double_precision(self) -> None:
        expected = np.array([[1e8, 1.0], [2.0, 3.0]], np.float32)
        weight = np.array([[1, 2], [-3, 4]], np.int8)
        assert projection(expected + np.float32(8), expected, weight) == 8 * (1 + 2 - 3 + 4)

    def test_projection_ignores_classes_beyond_the_adapter(self) -> None:
        expected, weight = np.zeros((2, 3), np.float32), np.ones((2, 3), np.int8)
        wide = np.full((2, 5), -1e31, np.float32)
        wide[:, :3] = 0.5
        assert projection(wide, expected, weight) == 3.0

    @pytest.mark.parametrize("found", [None, np.zeros((2, 2)), np.zeros((1, 3)), np.full((2, 3), np.nan)])
    def test_projection_is_nan_for_invalid_results(self, found: np.ndarray | None) -> None:
        assert math.isnan(projection(found, np.zeros((2, 3), np.float32), np.ones((2, 3), np.int8)))


def test_disturbed_graphs_differ_by_a_few_ulps(built: Path) -> None:
    bundle = OpenedBundle.open(built, copy=False)
    model, kept = bundle.slots_model, {slot.name for slot in bundle.manifest.slots}
    copy = disturbed(model, bundle.home, kept, seed=0)
    changed = 0
    for name, value in copy.graph.initializers.items():
        one, two = model.graph.initializers[name].const_value, value.const_value
        if one is None or two is None or np.array_equal(one.numpy(), two.numpy(), equal_nan=True):
            continue
        changed += 1
        assert name not in kept
        assert one.numpy().ndim == 1
        np.testing.assert_allclose(two.numpy(), one.numpy(), rtol=1e-6)
    assert changed > 3
