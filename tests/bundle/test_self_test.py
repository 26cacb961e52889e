"""Self-test of a check: faults are planted in a copy, found, located and removed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from building import build_bundle, in_precision
from small_bundle import Built, build_small
from tampering import rehash, unrecorded
from tiny_onnx import random_adapter, save_tiny

import adapter_export as ae
from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.proof.proof_plan import Reference
from adapter_export.errors import ParityError, UsageError
from adapter_export.format.check_report import FaultRecord
from adapter_export.format.manifest import AdapterRecord, Manifest
from adapter_export.graph.kinds import BottleneckOptions, houlsby, lora, pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.plugins.selftest.fault import Copy
from adapter_export.plugins.selftest.fault_kinds import FAULTS
from adapter_export.plugins.selftest.selftest import self_test
from schemas import validate

LOCATED = {
    "batches of four or more scaled by 1.01",
    "a slot scaled by 1.001",
    "a tensor of an adapter scaled by 1.001",
    "only the .onnx_adapter file is wrong",
    "a tensor missing from an adapter",
    "two rows of the bank swapped",
    "two labels swapped",
    "two answers of a golden batch swapped",
    "an adapter of a golden batch replaced",
    "golden cases cut to one",
}
FOUND = {
    "a site removed",
    "a tensor scaled by 1.001",
    "a word's row doubled",
    "a residual removed",
    "another activation in `inputs`",
}
ABSENT = {"two words of the tokenizer swapped", "the rows of two positions swapped"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_self_test_has_at_least_100_named_faults() -> None:
    assert len(FAULTS) >= 100
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_self_test_locates_faults_and_leaves_the_bundle_unchanged(built: Built) -> None:
    before = contents(built.folder)
    reference = Reference(str(built.model), CutRunner(built.base))
    kinds = LOCATED | FOUND | ABSENT
    found = {one.name: one for one in self_test(OpenedBundle.open(built.folder), reference, kinds, seed=3)}
    assert found.keys() == kinds
    assert {name for name in kinds if found[name].status == "located"} >= LOCATED
    assert {found[name].status for name in FOUND} <= {"located", "found"}
    assert {found[name].status for name in ABSENT} == {"not applicable"}
    assert all(found[name].detail and found[name].places for name in LOCATED | FOUND)
    assert contents(built.folder) == before


def test_self_test_plants_a_false_claim_about_padding(tmp_path: Path) -> None:
    built = build_small(tmp_path, ["slots"], counts_padding=True)
    reference = Reference(str(built.model), CutRunner(built.base))
    kinds = ["padding recorded as neutral", "padding recorded as neutral for all adapters"]
    found = list(self_test(OpenedBundle.open(built.folder), reference, kinds, seed=3))
    assert {one.name: one.status for one in found} == {kinds[0]: "located", kinds[1]: "not applicable"}


def test_self_test_plants_a_false_claim_about_padding_of_adapters(tmp_path: Path) -> None:
    base = open_onnx(save_tiny(tmp_path))
    gated = random_adapter("gated", pfeiffer(BottleneckOptions(gate=True)), base, labels="ab")
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 2, "tokens": 5}])
    runner = CutRunner(base)
    build_bundle(base, [gated], tmp_path / "bundle", references=runner, cases=cases, variants=[])
    kinds = ["padding recorded as neutral for all adapters"]
    (found,) = self_test(OpenedBundle.open(tmp_path / "bundle"), Reference("base", runner), kinds, seed=3)
    assert found.status == "located"


def test_unnoticed_faults_are_reported_as_missed(copy: Path) -> None:
    """Without the model and recorded runs, a weight that is off by an ulp goes unnoticed; outputs differ by bits."""
    rehash(copy, unrecorded)
    kinds = ["one number of a word off by an ulp"]
    found = ae.self_test(copy, kinds=kinds, seed=1)
    assert [one.status for one in found.faults if one.name == kinds[0]] == ["missed"]
    assert "differs within the budget" in found.faults[0].detail
    assert not found.passed
    assert found.table().rows[-1][4] == found.count("missed")
    validate(found.to_json(), "self-test")


def test_unknown_kinds_of_faults_are_refused(built: Built) -> None:
    with pytest.raises(UsageError, match="kind of fault"):
        ae.self_test(built.folder, kinds=["gremlins"])


def test_a_bundle_that_is_wrong_has_no_self_test(built: Built, tmp_path: Path) -> None:
    copy = Copy(OpenedBundle.open(built.folder), tmp_path)
    copy.renew(0)
    next(fault for fault in FAULTS if fault.name == "a residual removed").plant(copy)
    with pytest.raises(ParityError):
        list(self_test(copy.opened(), None, (), seed=0))


def test_a_copy_is_whole_again_after_every_kind(built: Built, tmp_path: Path) -> None:
    """Faults planted one after the other leave nothing behind."""
    copy = Copy(OpenedBundle.open(built.folder), tmp_path)
    before = contents(copy.folder)
    for at, fault in enumerate(FAULTS):
        copy.renew(at)
        changed = fault.plant(copy) is not None
        assert changed == (contents(copy.folder) != before), fault.name
    copy.renew(0)
    assert contents(copy.folder) == before


GOLDEN = [fault.name for fault in FAULTS if fault.area in ("golden data", "recorded runs")]


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every graph of a base in 8 bits, whose budgets hide sites, with adapters in float32 and in 8 bits."""
    folder = tmp_path_factory.mktemp("int8")
    base = in_precision(open_onnx(save_tiny(folder)), "int8", folder)
    adapters = [
        random_adapter("a", houlsby(), base, bottleneck=4, labels="xy"),
        random_adapter("b", lora(), base, labels="xyz"),
        random_adapter("c", houlsby(), base, bottleneck=8, labels="pqr"),
    ]
    shapes = [{"batch": 1, "tokens": 3}, {"batch": 1, "tokens": 33}, {"batch": 3, "tokens": 7}]
    cases = input_cases(base.inputs, seed=0, shapes=shapes)
    build_bundle(
        base,
        adapters,
        folder / "bundle",
        references=CutRunner(base),
        cases=cases,
        variants=["slots", "inputs", "bank", "fanout"],
        bake=["a", "b"],
        precisions={"b": "int8", "c": "int8"},
    )
    return folder / "bundle"


def _planted(folder: Path, kinds: Sequence[str] = GOLDEN, seed: int = 1) -> dict[str, FaultRecord]:
    return {one.name: one for one in self_test(OpenedBundle.open(folder), None, kinds, seed)}


def test_golden_data_tell_adapters_that_are_applied_in_part(int8: Path) -> None:
    """All files of the client agree with each other; neither the model nor the adapters' sources are compared."""
    found = _planted(int8)
    assert {one.status for one in found.values()} == {"located"}, list(found.values())
    assert len(found) == len(GOLDEN) == 10


def test_golden_data_locate_partial_adapters_in_float32(built: Built) -> None:
    found = _planted(built.folder)
    baked = {name for name in GOLDEN if "baked" in name}
    assert {found[name].status for name in GOLDEN if name not in baked} == {"located"}
    assert {found[name].status for name in baked} == {"not applicable"}


def _without_parts(record: AdapterRecord) -> AdapterRecord:
    return replace(record, golden=replace(record.golden, parts=None))


def test_missing_golden_parts_hide_neutral_sites_in_8_bits(int8: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(int8, tmp_path / "bundle")
    rehash(copy, lambda manifest: replace(manifest, adapters=tuple(map(_without_parts, manifest.adapters))))
    shutil.rmtree(copy / "golden" / "parts")
    rehash(copy)
    (found,) = _planted(copy, ["one site neutral"]).values()
    assert found.status == "missed"
    assert "not shown by golden data in `slots`" in found.detail


def test_faults_that_golden_data_barely_show_are_not_planted(int8: Path, tmp_path: Path) -> None:
    def weak(record: AdapterRecord) -> AdapterRecord:
        assert record.golden.separation is not None
        names = [f"{site.name} off" for site in manifest.sites] + [f"layer {number} off" for number in range(2)]
        separation = replace(record.golden.separation, weak=tuple(names))
        return replace(record, golden=replace(record.golden, separation=separation))

    def all_weak(manifest: Manifest) -> Manifest:
        return replace(manifest, adapters=tuple(map(weak, manifest.adapters)))

    manifest = OpenedBundle.open(int8).manifest
    copy = shutil.copytree(int8, tmp_path / "bundle")
    rehash(copy, all_weak)
    found = _planted(copy)
    assert found.pop("the rows of the bank shifted by one").status == "located"
    assert {one.status for one in found.values()} == {"not applicable"}


def test_recorded_runs_of_another_runtime_say_nothing(int8: Path, tmp_path: Path) -> None:
    def other(manifest: Manifest) -> Manifest:
        assert manifest.recorded is not None
        recorded = replace(manifest.recorded, runtime="1.0.0")
        adapters = tuple(map(_without_parts, manifest.adapters))
        return replace(manifest, recorded=recorded, adapters=adapters)

    copy = shutil.copytree(int8, tmp_path / "bundle")
    rehash(copy, other)
    shutil.rmtree(copy / "golden" / "parts")
    rehash(copy)
    (found,) = _planted(copy, ["one tensor of another adapter"], seed=4).values()
    assert found.status == "not applicable"
    assert "recorded runs are not comparable here" in found.detail
