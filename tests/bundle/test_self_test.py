"""A check that is put to the test: faults are planted in a copy, found, located, and gone again."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_bundle import Built, build_small
from tampering import rehash, unrecorded
from tiny_onnx import random_adapter, save_tiny

import adapter_export as ae
from adapter_export.bundle.build_bundle import build_bundle
from adapter_export.bundle.opened import OpenedBundle
from adapter_export.bundle.proof.faults import FAULTS, Copy
from adapter_export.bundle.proof.proof_plan import Reference
from adapter_export.bundle.proof.selftest import self_test
from adapter_export.errors import ParityError, UsageError
from adapter_export.graph.kinds import BottleneckOptions, pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from schemas import validate

LOCATED = {
    "batches of four and more off by 1 %",
    "a slot scaled by 1.001",
    "a tensor of an adapter scaled by 1.001",
    "only the .onnx_adapter file is wrong",
    "a tensor missing from an adapter",
    "two rows of the bank exchanged",
    "two labels exchanged",
    "an answer of another row in golden batches",
    "another adapter of a row in golden batches",
}
FOUND = {
    "a site left out",
    "a tensor scaled by 1.001",
    "a word's row doubled",
    "a residual left out",
    "another activation in `inputs`",
}
ABSENT = {"two words of the tokenizer exchanged", "the rows of two positions exchanged"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_are_many_kinds_of_faults_each_with_a_name() -> None:
    assert len(FAULTS) >= 100
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_faults_are_found_and_located_and_the_bundle_stays_as_it_is(built: Built) -> None:
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


def test_padding_that_is_said_to_change_nothing(tmp_path: Path) -> None:
    built = build_small(tmp_path, ["slots"], counts_padding=True)
    reference = Reference(str(built.model), CutRunner(built.base))
    kinds = ["padding said to change nothing", "padding said to change no adapter"]
    found = list(self_test(OpenedBundle.open(built.folder), reference, kinds, seed=3))
    assert {one.name: one.status for one in found} == {kinds[0]: "located", kinds[1]: "not applicable"}


def test_padding_that_is_said_to_change_no_adapter(tmp_path: Path) -> None:
    base = open_onnx(save_tiny(tmp_path))
    gated = random_adapter("gated", pfeiffer(BottleneckOptions(gate=True)), base, labels="ab")
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 2, "tokens": 5}])
    runner = CutRunner(base)
    build_bundle(base, [gated], tmp_path / "bundle", references=runner, cases=cases, flavours=[])
    kinds = ["padding said to change no adapter"]
    (found,) = self_test(OpenedBundle.open(tmp_path / "bundle"), Reference("base", runner), kinds, seed=3)
    assert found.status == "located"


def test_what_is_not_seen_is_said_to_be_missed(copy: Path) -> None:
    """Without the model and recorded runs nothing says that a weight is off by an ulp; the outputs have other bits."""
    rehash(copy, unrecorded)
    kinds = ["one number of a word off by an ulp"]
    found = ae.self_test(copy, kinds=kinds, seed=1)
    assert [one.status for one in found.faults if one.name == kinds[0]] == ["missed"]
    assert "other bits, within the budget" in found.faults[0].detail
    assert not found.passed
    assert found.table().rows[-1][4] == found.count("missed")
    validate(found.to_json(), "self-test")


def test_a_kind_that_is_not_there_is_refused(built: Built) -> None:
    with pytest.raises(UsageError, match="kind of fault"):
        ae.self_test(built.folder, kinds=["gremlins"])


def test_a_bundle_that_is_wrong_has_no_self_test(built: Built, tmp_path: Path) -> None:
    copy = Copy(OpenedBundle.open(built.folder), tmp_path)
    copy.renew(0)
    next(fault for fault in FAULTS if fault.name == "a residual left out").plant(copy)
    with pytest.raises(ParityError):
        list(self_test(copy.opened(), None, (), seed=0))


def test_a_copy_is_whole_again_after_every_kind(built: Built, tmp_path: Path) -> None:
    """Planted one after the other, no fault leaves anything behind."""
    copy, before = Copy(OpenedBundle.open(built.folder), tmp_path), contents(built.folder)
    for at, fault in enumerate(FAULTS):
        copy.renew(at)
        changed = fault.plant(copy) is not None
        assert changed == (contents(copy.folder) != before), fault.name
    copy.renew(0)
    assert contents(copy.folder) == before
