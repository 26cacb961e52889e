"""Every graph of a bundle is checked, and every kind of damage to one of them is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from counted import Counted
from small_bundle import Built, build_small
from tampering import rehash

from adapter_export.bundle.proof.proof_plan import Reference, plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.bundle.report import Report, failures
from adapter_export.bundle.variants import VARIANTS
from adapter_export.errors import FormatError, UsageError
from adapter_export.format.manifest import VARIANT_NAMES, Manifest
from adapter_export.onnx_backend.onnx_runner import CutRunner
from schemas import validate

Change = Callable[[dict[str, np.ndarray]], None]

UP, MASK = "bank.layers.0.ffn.bottleneck_relu.up.weight", "bank.head.logits.mask"
ALL = (None, "topic", "tone", "mood")
BATCHES = ("golden batches", "bundle")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A bundle with every graph; two adapters are baked in."""
    return build_small(tmp_path_factory.mktemp("whole"), bake=["topic", "tone"])


@pytest.fixture
def bundle(whole: Built, tmp_path: Path) -> Path:
    """A copy, for tampering."""
    return shutil.copytree(whole.folder, tmp_path / "bundle")


def check(folder: Path, *forms: str, only: tuple[str, ...] = (), reference: Reference | None = None) -> Report:
    counted = Counted()
    plan = plan_check(folder, variants=forms, only=only)
    report = prove(plan, reference, reporter=counted)
    assert counted.ended
    report.require_compared()
    validate(report.to_json(), "check-report")
    return report


def broken(report: Report) -> set[tuple[str, str]]:
    return {
        (result.check, result.subject) for result in report.findings if not result.passed and not result.measurements
    }


def failed(report: Report) -> set[tuple[str | None, str, bool]]:
    return {(each.adapter, each.variant, each.mixed) for each in report.outputs if not each.passed}


def edit_bank(folder: Path, change: Change) -> None:
    """Change tensors in `bank.bin`, and the hashes."""
    path = folder / "bank.bin"
    held = ir.load(folder / "model.bank.onnx").graph.initializers
    stored = [value.const_value for value in held.values() if isinstance(value.const_value, ir.ExternalTensor)]
    parts = [tensor for tensor in stored if tensor.location == path.name]
    tensors = {tensor.name or "": tensor.numpy().copy() for tensor in parts}
    change(tensors)
    data = bytearray(path.read_bytes())
    for tensor in parts:
        start = tensor.offset or 0
        data[start : start + tensor.nbytes] = tensors[tensor.name or ""].tobytes()
    path.write_bytes(data)
    rehash(folder)


def edit_graph(folder: Path, file: str, change: Callable[[ir.Graph], None]) -> None:
    model = ir.load(folder / file)
    change(model.graph)
    ir.save(model, folder / file)
    rehash(folder)


def test_every_graph_is_run_on_everything_that_slots_are_run_on(whole: Built) -> None:
    report = check(whole.folder, reference=Reference(str(whole.model), CutRunner(whole.base)))
    assert report.passed
    runs = {
        form: {(each.against, each.adapter, each.case, each.name) for each in report.outputs
               if each.variant == form and not each.mixed}
        for form in VARIANT_NAMES
    }  # fmt: skip
    # cases beyond the core run in the main graph only
    beyond = {case.name for case in plan_check(whole.folder).cases if not case.core}
    core = {place for place in runs["slots"] if place[2] not in beyond}
    assert {case for *_, case, _ in runs["slots"]} > beyond
    assert len({case for *_, case, _ in core}) > 5
    assert runs["inputs"] == runs["bank"] == core
    assert runs["baked"] == {place for place in core if place[1] in ("topic", "tone")}
    mixed = {(each.against, each.adapter, each.case) for each in report.outputs if each.mixed}
    several = {(against, name, case) for against, name, case, _ in core if not case.startswith("batch1")}
    assert mixed == several
    assert {each.variant for each in report.outputs if each.mixed} == {"bank"}


def test_every_graph_matches_the_golden_vectors_without_a_reference(whole: Built) -> None:
    report = check(whole.folder)
    assert report.passed
    assert {(each.variant, each.adapter) for each in report.outputs} == {
        *((form, name) for form in whole.manifest.graphs for name in ALL),
        ("baked", "topic"),
        ("baked", "tone"),
    }
    names = {result.check for result in report.findings}
    assert names >= {"bank rows", "baked tensors", "rows of a batch", "swap"}


def test_one_graph_can_be_checked_alone(whole: Built) -> None:
    report = check(whole.folder, "bank", only=("tone",))
    assert report.passed
    assert {(each.variant, each.adapter) for each in report.outputs} == {("bank", "tone")}
    assert {each.mixed for each in report.outputs} == {False, True}, "besides the others, which are not compared"
    assert not report.sites
    with pytest.raises(UsageError, match="unknown variant"):
        plan_check(whole.folder, variants=["fast"])


def test_rows_of_a_bank_in_a_wrong_order_are_found(bundle: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for tensor in tensors.values():
            tensor[1:] = tensor[[2, 3, 1]]

    edit_bank(bundle, change)
    report = check(bundle)
    assert failed(report) == {(name, "bank", mixed) for name in ("topic", "tone", "mood") for mixed in (False, True)}
    moved = ("topic", "tone", "mood")
    assert broken(report) == {*((check, name) for check in ("bank rows", "recorded runs") for name in moved), BATCHES}
    assert all(failure.variants_failed == ("bank",) for failure in failures(report))


def test_rows_with_wrong_names_are_found(bundle: Path) -> None:
    def change(manifest: Manifest) -> Manifest:
        assert manifest.bank is not None
        return replace(manifest, bank=replace(manifest.bank, rows=(None, "topic", "mood", "tone")))

    rehash(bundle, change)
    report = check(bundle, "slots", "bank")
    assert {failure.adapter for failure in failures(report)} == {"tone", "mood"}
    moved = ("tone", "mood")
    assert broken(report) == {*((check, name) for check in ("bank rows", "recorded runs") for name in moved), BATCHES}


def test_one_tensor_that_changed_places_in_the_bank_is_found_and_named(bundle: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[UP][[2, 3]] = tensors[UP][[3, 2]]

    edit_bank(bundle, change)
    report = check(bundle, "bank")
    assert {failure.adapter for failure in failures(report)} == {"tone", "mood"}
    details = [result.detail for result in report.findings if (result.check, result.passed) == ("bank rows", False)]
    assert details == [f"differs from the adapter's file: {UP}"] * 2


def test_one_unit_in_the_last_place_of_the_bank_is_found(bundle: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[UP][2, 0, 0] = np.nextafter(tensors[UP][2, 0, 0], np.float32(9))

    edit_bank(bundle, change)
    report = check(bundle)
    assert not report.passed
    assert (failed(report), broken(report)) == (set(), {("bank rows", "tone")})


@pytest.mark.parametrize("value", [0.0, -10.0])
def test_a_class_that_is_not_masked_is_found(bundle: Path, value: float) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        assert not tensors[MASK][2, :2].any()
        assert tensors[MASK][2, 2] < -1e30
        tensors[MASK][2, 2] = value

    edit_bank(bundle, change)
    report = check(bundle, "bank")
    assert failed(report) == {("tone", "bank", False), ("tone", "bank", True)}
    faults = {fault for each in report.outputs for fault in each.faults}
    assert faults == {"a class outside the adapter's labels is not masked"}


def test_wrongly_masked_classes_are_found(bundle: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[MASK][1, 2] = -3e38

    edit_bank(bundle, change)
    assert {failure.adapter for failure in failures(check(bundle, "bank"))} == {"topic"}


@pytest.mark.parametrize("form", ["inputs", "bank", "baked"])
def test_a_graph_that_computes_something_else_is_found(bundle: Path, form: str) -> None:
    file = "model.baked.tone.onnx" if form == "baked" else VARIANTS[form].file  # type: ignore[index]

    def change(graph: ir.Graph) -> None:
        act = next(node for node in graph if node.op_type == "Relu" and node.name.startswith("adapter."))
        act.op_type = "Tanh"

    edit_graph(bundle, file, change)
    report = check(bundle)
    assert {(failure.adapter, failure.variants_failed) for failure in failures(report)} == {
        (name, (form,)) for name in (("tone",) if form == "baked" else ("tone", "mood"))
    }
    assert all(f"--variant {form}" in failure.command for failure in failures(report))


def _replace(graph: ir.Graph, old: ir.Value, op: str, **attributes: int) -> None:
    """Redirect all readers of a value to the result of an operator on the value and itself."""
    inputs = [old] if op.startswith("Reduce") else [old, old]
    node = ir.node(op, inputs, attributes)
    readers = [(reader, at) for reader, at in old.uses()]
    graph.insert_before(readers[0][0], node)
    for reader, at in readers:
        if reader is not node:
            reader.replace_input_with(at, node.outputs[0])


def _input(graph: ir.Graph, name: str) -> ir.Value:
    return next(value for value in graph.inputs if value.name == name)


def test_ids_that_are_ignored_are_found(bundle: Path) -> None:
    edit_graph(bundle, "model.bank.onnx", lambda graph: _replace(graph, _input(graph, "adapter_ids"), "Sub"))
    report = check(bundle, "bank")
    assert {failure.adapter for failure in failures(report)} == {"topic", "tone", "mood"}


def test_one_id_for_all_rows_is_found_in_mixed_batches_alone(bundle: Path) -> None:
    def change(graph: ir.Graph) -> None:
        _replace(graph, _input(graph, "adapter_ids"), "ReduceMax", keepdims=1)

    edit_graph(bundle, "model.bank.onnx", change)
    report = check(bundle, "bank")
    assert {mixed for _, _, mixed in failed(report)} == {True}
    assert {name for name, _ in broken(report)} == {"rows of a batch"}


def test_another_adapter_baked_in_is_found(bundle: Path) -> None:
    shutil.copy(bundle / "model.baked.topic.onnx", bundle / "model.baked.tone.onnx")
    rehash(bundle)
    report = check(bundle, "baked")
    assert {failure.adapter for failure in failures(report)} == {"tone"}
    assert broken(report) == {("baked tensors", "tone")}


@pytest.mark.parametrize("file", ["model.bank.onnx", "model.inputs.onnx", "model.onnx"])
def test_a_file_that_is_no_graph_is_refused(bundle: Path, file: str) -> None:
    (bundle / file).write_bytes(b"no graph at all")
    rehash(bundle)
    with pytest.raises(FormatError, match="not an ONNX model"):
        check(bundle)


def test_ids_of_another_name_are_refused(bundle: Path) -> None:
    edit_graph(bundle, "model.bank.onnx", lambda graph: setattr(_input(graph, "adapter_ids"), "name", "ids_of_rows"))
    with pytest.raises(FormatError, match="unexpected input `ids_of_rows`"):
        check(bundle, "bank")
