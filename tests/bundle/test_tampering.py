"""Every kind of tampering with a bundle fails its check, even with updated hashes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_bundle import Built
from tampering import edit, edit_adapter, rehash, scaled

from adapter_export.bundle.proof.proof_plan import Reference, plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.bundle.report import Report, failures
from adapter_export.errors import AdapterError, HashError, NothingComparedError, TensorError
from adapter_export.format.adapter_files import read_adapter, write_adapter
from adapter_export.format.manifest import Manifest
from adapter_export.onnx_backend.onnx_runner import CutRunner

UP = "adapter.layers.0.ffn.bottleneck_relu.up.weight"


def check(
    folder: Path, reference: Reference | None = None, only: tuple[str, ...] = (), forms: tuple[str, ...] = ("slots",)
) -> Report:
    report = prove(plan_check(folder, only=only, variants=forms), reference)
    report.require_compared()
    return report


def test_a_changed_byte_is_seen(copy: Path) -> None:
    path = copy / "adapters/tone.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(HashError):
        check(copy)


def test_two_adapters_that_changed_places_are_seen(copy: Path) -> None:
    for ending in ("onnx_adapter", "safetensors"):
        one, other = copy / f"adapters/tone.{ending}", copy / f"adapters/mood.{ending}"
        data = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)
    rehash(copy)
    report = check(copy)
    assert {failure.adapter for failure in failures(report)} == {"tone", "mood"}
    assert all(failure.culprit is not None and failure.culprit.name == "layers.0.ffn" for failure in failures(report))


def test_adapters_of_other_heads_that_changed_places_are_seen(copy: Path) -> None:
    one, other = copy / "adapters/tone.onnx_adapter", copy / "adapters/topic.onnx_adapter"
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    rehash(copy)
    with pytest.raises(AdapterError):
        check(copy)


@pytest.mark.parametrize("factor", [1.001, 0.5, -1.0, 0.0])
def test_a_wrong_scale_is_reported_at_its_site(copy: Path, factor: float) -> None:
    sites = {"tone": "layers.0.ffn", "mood": "layers.1.ffn"}
    for adapter, site in sites.items():
        edit_adapter(copy, adapter, scaled(UP.replace("layers.0.ffn", site), factor))
    report = check(copy)
    assert {failure.adapter: failure.culprit and failure.culprit.name for failure in failures(report)} == sites
    bad = [(result.adapter, result.name) for result in report.sites if not result.passed]
    assert bad == [*sites.items()], "an error must not count against later sites"


def test_a_wrong_head_is_reported_at_the_head(copy: Path) -> None:
    edit_adapter(copy, "tone", scaled("adapter.head.classifier.weight", 1.001))
    (failure,) = failures(check(copy))
    assert failure.output == "logits"
    assert failure.culprit is not None
    assert failure.culprit.name == "head"


def test_one_ulp_at_an_idle_site_is_reported_at_the_site(copy: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["adapter.layers.1.attention.up.bias"] = np.full(16, 1e-7, np.float32)

    edit_adapter(copy, "tone", change)
    report = check(copy)
    bad = [result for result in report.sites if not result.passed]
    assert [result.name for result in bad] == ["layers.1.attention"]
    assert bad[0].absolute < 3e-7


def test_errors_below_every_budget_change_the_bits_of_a_slot(copy: Path) -> None:
    edit_adapter(copy, "tone", scaled(UP, 1 + 2**-23))
    report = check(copy, forms=("slots", "inputs"))
    assert all(result.passed for result in (*report.outputs, *report.sites))
    recorded = "recorded-runs/tone"
    owed = {owed.id: owed.detail for owed in report.findings if owed.status == "failed"}
    assert owed.keys() == {"slots/tone", recorded}
    assert UP in owed["slots/tone"]
    bad = {
        (one.check, one.subject): one.detail
        for one in check(copy, forms=()).findings
        if not one.passed and not one.measurements
    }
    places = {("slots", "tone"), ("bank rows", "tone"), ("recorded runs", "tone")}
    assert bad.keys() == places, "the bank still has the original adapter"
    assert bad["recorded runs", "tone"].startswith("`slots`, `inputs`: bits differ")


def test_a_missing_slot_is_seen(copy: Path) -> None:
    edit_adapter(copy, "tone", lambda tensors: tensors.__delitem__(UP))
    with pytest.raises(TensorError, match=UP):
        check(copy)


def test_an_adapter_of_nan_is_seen(copy: Path) -> None:
    edit_adapter(copy, "tone", scaled(UP, float("nan")))
    with pytest.raises(TensorError):
        check(copy)


def test_an_adapter_that_overflows_is_seen(copy: Path) -> None:
    edit_adapter(copy, "tone", scaled(UP, 1e38))
    report = check(copy)
    (failure,) = failures(report)
    assert failure.culprit is not None
    assert failure.culprit.name == "layers.0.ffn"


def test_files_of_one_adapter_that_do_not_agree_are_seen(copy: Path) -> None:
    edit(copy / "adapters/tone.safetensors", scaled(UP, 1 + 2**-23))
    rehash(copy)
    report = check(copy)
    assert not report.passed
    bad = next(one for one in report.findings if not one.passed and one.check == "adapter files")
    assert (bad.check, bad.subject) == ("adapter files", "tone")
    assert UP in bad.detail


def test_an_adapter_changed_everywhere_is_seen_by_its_golden_vectors(copy: Path) -> None:
    """The tampered adapter is consistent; only the stored golden vectors contradict it."""
    source = read_adapter(copy / "adapters/tone")
    weights = {**source.weights, "layers.0.ffn.up.weight": source.weights["layers.0.ffn.up.weight"] * np.float32(1.01)}
    write_adapter(replace(source, weights=weights), copy / "adapters/tone", force=True)
    edit_adapter(copy, "tone", scaled(UP, 1.01))
    report = check(copy)
    assert all(result.passed for result in report.sites)
    (failure,) = failures(report)
    assert (failure.adapter, failure.culprit) == ("tone", None)


def test_a_changed_base_is_seen_by_every_golden_vector(copy: Path) -> None:
    path = copy / "base.bin"
    data = np.frombuffer(path.read_bytes(), np.float32).copy()
    path.write_bytes((data * np.float32(1.001)).tobytes())
    rehash(copy)
    assert {failure.adapter for failure in failures(check(copy))} == {None, "topic", "tone", "mood"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_golden_vectors_that_are_not_finite_are_seen(copy: Path, value: float) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["batch3_tokens7.output.hidden"][0, 0, 0] = value

    edit(copy / "golden/tone.safetensors", change)
    rehash(copy)
    assert {failure.adapter for failure in failures(check(copy))} == {"tone"}


@pytest.mark.parametrize("name", ["batch3_tokens7.input.ids", "batch3_tokens7.output.hidden"])
def test_golden_vectors_without_a_tensor_are_refused(copy: Path, name: str) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors[name]

    edit(copy / "golden/tone.safetensors", change)
    rehash(copy)
    with pytest.raises(TensorError, match="do not match their cases"):
        check(copy)


def test_a_case_that_nothing_is_known_of_compares_nothing(built: Built) -> None:
    """The golden vectors have other shapes, and there is no reference."""
    report = prove(plan_check(built.folder, cases=["batch3_tokens65"]), None)
    assert report.coverage().compared == len(report.sites)
    with pytest.raises(NothingComparedError, match="nothing was compared"):
        report.require_compared()


def test_golden_vectors_of_one_output_alone_are_not_enough(copy: Path) -> None:
    def change(manifest: Manifest) -> Manifest:
        adapters = tuple(
            replace(adapter, golden=replace(adapter.golden, absolute=absolute, separation=None))
            for adapter in manifest.adapters
            if (absolute := {"logits": adapter.golden.absolute["logits"]})
        )
        return replace(manifest, adapters=adapters)

    for name in ("tone", "topic", "mood"):
        edit(copy / f"golden/{name}.safetensors", _without_hidden)
    rehash(copy, change)
    faults = {fault for result in check(copy).outputs for fault in result.faults}
    assert faults == {"the reference has no such output"}


def _without_hidden(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if name.endswith("output.hidden")]:
        del tensors[name]


def test_another_budget_is_seen_beside_a_reference(built: Built, copy: Path) -> None:
    """Larger budgets in the manifest affect the golden vectors, but not the reference."""

    def change(manifest: Manifest) -> Manifest:
        adapters = tuple(
            replace(adapter, golden=replace(adapter.golden, absolute=dict.fromkeys(adapter.golden.absolute, 1e9)))
            for adapter in manifest.adapters
        )
        return replace(manifest, adapters=adapters)

    edit_adapter(copy, "tone", scaled(UP, 1.01))
    rehash(copy, change)
    reference = Reference(str(built.model), CutRunner(built.base))
    assert {failure.adapter for failure in failures(check(copy, reference, only=("tone",)))} == {"tone"}


def test_a_source_of_another_adapter_is_refused(copy: Path) -> None:
    write_adapter(read_adapter(copy / "adapters/topic"), copy / "adapters/tone", force=True)
    rehash(copy)
    with pytest.raises(AdapterError, match="labels"):
        check(copy)
