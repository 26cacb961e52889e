"""ONNX Runtime's runs are recorded at build time, and compared bit for bit if they are comparable."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from building import build_bundle, in_precision
from tampering import edit_adapter, rehash, scaled, unrecorded
from tiny_onnx import random_adapter, save_tiny, tiny_model

from adapter_export.bundle.change import add_adapters, remove_adapters
from adapter_export.bundle.proof.proof_plan import plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.bundle.report import Report
from adapter_export.format.manifest import GoldenRecord, Manifest, RecordedRuns
from adapter_export.format.manifest_json import read_manifest
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import houlsby, lora
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner

SHAPES = [{"batch": 1, "tokens": 3}, {"batch": 1, "tokens": 33}, {"batch": 3, "tokens": 7}]
UP = "adapter.layers.0.ffn.up.weight"
CHECK, NOT_COMPARED = "recorded runs", "recorded runs not compared"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> OnnxBase:
    """A base in 8 bits."""
    folder = tmp_path_factory.mktemp("int8")
    return in_precision(open_onnx(save_tiny(folder)), "int8", folder)


def _adapters(base: OnnxBase) -> list[Adapter]:
    return [
        random_adapter("a", houlsby(), base, bottleneck=4, labels="xy"),
        random_adapter("b", lora(), base, labels="xyz"),
        random_adapter("c", houlsby(), base, bottleneck=8, labels="pqr"),
    ]


def _build(base: OnnxBase, adapters: list[Adapter], out: Path, **settings: Any) -> Path:
    cases = input_cases(base.inputs, seed=0, shapes=SHAPES)
    build_bundle(base, adapters, out, references=CutRunner(base), cases=cases, **settings)
    return out


@pytest.fixture(scope="module")
def built(base: OnnxBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `a` and `b` in every graph; do not change it."""
    variants = ["slots", "inputs", "bank", "fanout"]
    out = tmp_path_factory.mktemp("recorded") / "bundle"
    return _build(base, _adapters(base)[:2], out, variants=variants, bake=["a"])


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "bundle")


def _verify(folder: Path, **settings: Any) -> Report:
    return prove(plan_check(folder, quick=True, **settings), None)


def _found(report: Report, name: str = CHECK) -> dict[str, str]:
    """Return the findings, by subject."""
    return {
        one.subject: f"{'passed' if one.passed else 'failed'}: {one.detail}"
        for one in report.findings
        if one.check == name
    }


def _records(manifest: Manifest) -> dict[str | None, GoldenRecord]:
    return {None: manifest.golden, **{one.name: one.golden for one in manifest.adapters}}


def _digest(folder: Path, name: str | None, variant: str, threads: int) -> str:
    """Return the digest of a graph as docs/reference/format.md describes it, with a separate session."""
    manifest = read_manifest(folder)
    assert manifest.recorded is not None
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    without = {"disabled_optimizers": ["SkipLayerNormFusion", "BiasGeluFusion"]}
    session = ort.InferenceSession(folder / manifest.graphs[variant], options, **without)
    record, digest = _records(manifest)[name], hashlib.sha256()
    golden = read_tensors(folder / record.path)
    path = next((one.safetensors for one in manifest.adapters if one.name == name), None)
    slots = {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in manifest.slots}
    slots |= {} if path is None else read_tensors(folder / path)
    for case in manifest.recorded.cases:
        feeds = {one.name: golden[f"{case}.input.{one.name}"] for one in manifest.inputs}
        if variant == "bank":
            assert manifest.bank is not None
            rows = len(next(iter(feeds.values())))
            feeds[manifest.bank.ids] = np.full(rows, manifest.bank.rows.index(name))
        else:
            feeds |= slots
        outputs = sorted(record.absolute)
        for output, value in zip(outputs, session.run(outputs, feeds), strict=True):
            digest.update(value[..., : golden[f"{case}.output.{output}"].shape[-1]].tobytes())
    return digest.hexdigest()


def _with_golden(change: Callable[[str | None, GoldenRecord], GoldenRecord]) -> Callable[[Manifest], Manifest]:
    def changed(manifest: Manifest) -> Manifest:
        adapters = tuple(replace(one, golden=change(one.name, one.golden)) for one in manifest.adapters)
        return replace(manifest, golden=change(None, manifest.golden), adapters=adapters)

    return changed


def _elsewhere(**changes: object) -> Callable[[Manifest], Manifest]:
    """Change the machine on which the runs of a bundle were recorded."""

    def changed(manifest: Manifest) -> Manifest:
        assert manifest.recorded is not None
        return replace(manifest, recorded=replace(manifest.recorded, **changes))  # type: ignore[arg-type]

    return changed


def test_every_graph_has_a_digest_of_the_base_and_of_each_adapter(built: Path) -> None:
    manifest = read_manifest(built)
    recorded = manifest.recorded
    assert isinstance(recorded, RecordedRuns)
    assert (recorded.runtime, recorded.provider) == (ort.__version__, "CPUExecutionProvider")
    assert recorded.cases == ("batch1_tokens3", "batch1_tokens33")
    records = _records(manifest)
    uniform = {"slots", "inputs", "bank", "fanout"}
    assert {name: set(record.recorded) for name, record in records.items()} == {
        None: uniform,
        "a": {*uniform, "baked"},
        "b": uniform,
    }
    for variant in ("slots", "bank"):
        assert len({record.recorded[variant] for record in records.values()}) == len(records)


@pytest.mark.parametrize("threads", [1, 4])
def test_another_session_gives_the_digests(built: Path, threads: int) -> None:
    for name, record in _records(read_manifest(built)).items():
        for variant in ("slots", "inputs", "bank"):
            assert record.recorded[variant] == _digest(built, name, variant, threads)


def test_verify_compares_recorded_runs(built: Path) -> None:
    report = _verify(built)
    assert report.passed
    end = "2 cases match the build, bit-exact"
    assert _found(report) == {
        "base": f"passed: slots, inputs, bank, fanout: {end}",
        "a": f"passed: slots, inputs, bank, fanout, baked: {end}",
        "b": f"passed: slots, inputs, bank, fanout: {end}",
    }
    assert not _found(report, NOT_COMPARED)
    assert {owed.id: owed.status for owed in report.findings}["recorded-runs/a"] == "tested"


def test_a_tensor_that_no_budget_sees_is_found(bundle: Path) -> None:
    edit_adapter(bundle, "a", scaled(UP, 1.0001))
    report = _verify(bundle, variants=["slots", "inputs"])
    assert all(result.passed for result in (*report.outputs, *report.sites)), "budgets in 8 bits are wider than that"
    bad = {one.check for one in report.findings if not one.passed}
    assert bad == {CHECK}
    assert not report.passed
    found = _found(report)
    assert found["a"].startswith("failed: `slots`, `inputs`: bits differ from the build's")
    assert found["b"].startswith("passed")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_elsewhere(runtime="1.21.0"), "recorded with onnxruntime 1.21.0"),
        (_elsewhere(provider="CUDAExecutionProvider"), "CUDAExecutionProvider; this is"),
    ],
)
def test_another_runtime_is_not_compared(bundle: Path, change: Callable[[Manifest], Manifest], reason: str) -> None:
    edit_adapter(bundle, "a", scaled(UP, 1.0001))
    rehash(bundle, change)
    report = _verify(bundle, variants=["slots", "inputs"])
    assert report.passed
    assert not _found(report)
    assert reason in _found(report, NOT_COMPARED)["bundle"]
    assert {owed.id: owed.status for owed in report.findings}["recorded-runs-not-compared/bundle"] == "unverified"


def test_a_graph_whose_base_has_other_bits_is_not_compared(bundle: Path) -> None:
    def change(name: str | None, record: GoldenRecord) -> GoldenRecord:
        other: Mapping[str, str] = dict.fromkeys(("slots", "bank"), "0" * 64) if name is None else {}
        return replace(record, recorded={**record.recorded, **other})

    edit_adapter(bundle, "a", scaled(UP, 1.0001))
    rehash(bundle, _with_golden(change))
    report = _verify(bundle, variants=["slots", "inputs"])
    assert _found(report)["a"].startswith("failed: `inputs`: ")
    assert _found(report, NOT_COMPARED)["slots"].startswith("passed: the base's bits differ here")
    assert _verify(bundle, variants=["slots"]).passed


def test_baked_graphs_are_compared_through_the_base_of_another(bundle: Path) -> None:
    def change(name: str | None, record: GoldenRecord) -> GoldenRecord:
        return replace(record, recorded={**record.recorded, **({"baked": "0" * 64} if name == "a" else {})})

    rehash(bundle, _with_golden(change))
    assert _found(_verify(bundle))["a"].startswith("failed: `baked`: ")
    alone = _verify(bundle, variants=["baked"])
    assert alone.passed
    assert set(_found(alone, NOT_COMPARED)) == {"baked"}


def test_a_difference_on_another_processor_is_open(bundle: Path) -> None:
    edit_adapter(bundle, "a", scaled(UP, 1.0001))
    rehash(bundle, _elsewhere(features=("AVX9",)))
    report = _verify(bundle, variants=["slots"])
    assert report.passed
    assert "AVX9" in _found(report, NOT_COMPARED)["a"]
    assert set(_found(report)) == {"base", "b"}, "equal bits are comparable on any processor"


@pytest.mark.parametrize("part", [{"only": ["a"]}, {"cases": ["batch1_tokens3"]}])
def test_a_part_of_the_runs_is_not_compared(built: Path, part: dict[str, list[str]]) -> None:
    report = _verify(built, **part)
    assert report.passed
    assert not _found(report)
    assert _found(report, NOT_COMPARED)


def test_a_bundle_without_recorded_runs_passes(bundle: Path) -> None:
    rehash(bundle, unrecorded)
    report = _verify(bundle)
    assert report.passed
    assert not _found(report)
    assert not _found(report, NOT_COMPARED)


def test_adding_and_removing_renews_recorded_runs(base: OnnxBase, bundle: Path) -> None:
    before = _records(read_manifest(bundle))
    rehash(bundle, unrecorded)
    after = _records(add_adapters(bundle, _adapters(base)[2:], references=CutRunner(base)))
    assert set(after["c"].recorded) == {"slots", "inputs", "bank", "fanout"}
    assert after["a"].recorded["slots"] == before["a"].recorded["slots"]
    assert _verify(bundle).passed
    left = _records(remove_adapters(bundle, ["a"]))
    assert set(left) == {None, "b", "c"}
    assert all(set(record.recorded) == {"slots", "inputs", "bank", "fanout"} for record in left.values())
    assert left["c"].recorded["bank"] == _digest(bundle, "c", "bank", 1)
    assert _verify(bundle).passed


def test_an_adapter_whose_bits_depend_on_threads_is_left_out(tmp_path: Path) -> None:
    """Threads split a product with more columns than rows by columns, and then sum more terms at a time."""
    base = open_onnx(save_tiny(tmp_path, tiny_model(width=256)))
    adapters = [
        random_adapter("wide", houlsby(), base, bottleneck=240),
        random_adapter("narrow", houlsby(), base, bottleneck=2),
    ]
    bundle = _build(base, adapters, tmp_path / "bundle", variants=["slots"])
    records = _records(read_manifest(bundle))
    for name in ("wide", "narrow"):
        same = len({_digest(bundle, name, "slots", threads) for threads in (1, 4, 32)}) == 1
        assert set(records[name].recorded) == ({"slots"} if same else set())
    report = _verify(bundle)
    assert report.passed
    assert (set(_found(report)), set(_found(report, NOT_COMPARED))) == ({"base", "narrow"}, {"wide"})
