"""Faults that sampling cannot find: one bit of a weight, a fact in the manifest, all copies of an adapter at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from once import once
from small_bundle import Built
from tampering import edit_adapter, rehash, scaled
from tiny_onnx import random_adapter

import adapter_export as ae
from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden import recorded_runs
from adapter_export.bundle.proof.manifest_checks import check_manifest
from adapter_export.bundle.proof.proof_plan import Reference, plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.bundle.report import Report
from adapter_export.errors import BaseModelError, FormatError, UsageError
from adapter_export.format.adapter_files import read_adapter, write_adapter
from adapter_export.format.check_report import Finding
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import read_manifest
from adapter_export.format.tensors import read_tensors, write_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import pfeiffer
from adapter_export.numerics.runner import Arrays
from adapter_export.onnx_backend.onnx_runner import CutRunner
from schemas import validate

WORDS_UP = "adapter.layers.0.ffn.bottleneck_relu.up.weight"
ONE_CASE: Mapping[str, Any] = {"variants": ["slots"], "cases": ["batch1_tokens1"], "only": ["base"]}
TORCH_CASE: Mapping[str, Any] = {**ONE_CASE, "cases": ["batch1_sequence1"]}


def failed(report: Report) -> list[Finding]:
    assert not report.passed
    return [owed for owed in report.findings if owed.status == "failed"]


def of(report: Report, start: str) -> list[Finding]:
    return [owed for owed in report.findings if owed.id.startswith(start)]


@pytest.fixture(scope="module")
def torch_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bert_archive: Path) -> Path:
    """Build a bundle of a torch archive, with `model.pt` and its adapter `a` beside it."""

    def make(folder: Path) -> None:
        shutil.copy(tiny_bert_archive, folder / "model.pt")
        base = ae.open_base(folder / "model.pt")
        (folder / "work").mkdir()
        adapter = random_adapter("a", pfeiffer(), base.exported(folder / "work"), bottleneck=4, labels=("no", "yes"))
        ae.save(adapter, folder / "a")
        ae.build(base, [folder / "a"], folder / "bundle", copy_weights=True, variants=("slots", "bank"))

    return once(tmp_path_factory, "tensors", make)


def edit_bin(bundle: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Change a weight of the base in `base.bin`, and the hashes."""
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    (tensor,) = [each for each in model.graph.initializer if each.name == name]
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = bytearray((bundle / place["location"]).read_bytes())
    start = int(place.get("offset", 0))
    array = np.frombuffer(data, np.float32, int(np.prod(tensor.dims)), start).reshape(tuple(tensor.dims))
    change(array)
    (bundle / place["location"]).unlink()
    (bundle / place["location"]).write_bytes(data)
    rehash(bundle)


def test_every_constant_of_a_torch_base_is_proved(torch_bundle: Path) -> None:
    own, case = [torch_bundle / "a"], ["batch1_sequence1"]
    report = ae.check(torch_bundle / "bundle", against=torch_bundle / "model.pt", adapters=own, cases=case)
    assert report.passed
    assert len({owed.id for owed in report.findings}) == len(report.findings)
    constants = of(report, "constant/model.onnx/")
    assert {owed.status for owed in constants} == {"exact"}
    assert any("transposed" in owed.claim for owed in constants)
    assert {owed.status for start in ("nodes/", "source/", "slots/") for owed in of(report, start)} == {"exact"}
    left_out = ["providers/others", "recorded-runs-not-compared/bundle"]  # one of the recorded cases
    assert sorted(owed.id for owed in report.findings if owed.status == "unverified") == left_out
    words = {
        span.what: (span.done, span.of) for owed in of(report, "output/reference/slots/") for span in owed.coverage
    }
    assert words["words"] == (1, 99)
    assert words["levels"] == (3, 4)
    validate(report.to_json(), "check-report")


def _ulp(array: np.ndarray) -> None:
    array[3, 5] = np.nextafter(array[3, 5], np.float32(np.inf))


def _thousandth(array: np.ndarray) -> None:
    array[0, 0] += np.float32(1e-3)


def _doubled(array: np.ndarray) -> None:
    array[17] *= 2


CHANGES: Mapping[str, Callable[[np.ndarray], None]] = {
    "encoder.layer.1.output.dense.weight": _ulp,
    "encoder.layer.0.attention.self.query.weight": _thousandth,
    "embeddings.word_embeddings.weight": _doubled,
}


def test_changed_weights_of_the_base_and_exchanged_sites_are_located(torch_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(torch_bundle / "bundle", tmp_path / "bundle")
    records = json.loads((bundle / "derivation.json").read_text())["constants"]
    names = {record["sources"][0]: record["name"] for record in records if record["sources"]}
    for source, change in CHANGES.items():
        edit_bin(bundle, names[source], change)

    def exchanged(said: Manifest) -> Manifest:
        first, second, *rest = said.sites
        return replace(said, sites=(replace(first, path=second.path), replace(second, path=first.path), *rest))

    rehash(bundle, exchanged)
    (owed,) = of(ae.verify(bundle), "manifest/sites")
    assert owed.status == "failed"
    assert "`layers.0.ffn` path `encoder.layer.0.attention.output.dense`" in owed.detail
    found = {owed.id: owed for owed in failed(ae.check(bundle, against=torch_bundle / "model.pt", **TORCH_CASE))}
    assert "`layers.0.attention`" in found.pop("manifest/sites-of-the-model").where
    assert found.pop("manifest/sites")
    located = {source: found.pop(f"constant/model.onnx/{names[source]}").detail for source in CHANGES}
    assert all(source in detail for source, detail in located.items())
    assert "1 of 2,048 elements, the first [3, 5]" in located["encoder.layer.1.output.dense.weight"]
    assert all(name.startswith("output/") or name == "golden-batches/bundle" for name in found), found


def edit_graph(bundle: Path, change: Callable[[onnx.ModelProto], object], file: str = "model.onnx") -> None:
    model = onnx.load(bundle / file, load_external_data=False)
    change(model)
    (bundle / file).unlink()
    onnx.save(model, bundle / file)
    rehash(bundle)


def test_a_changed_node_and_a_changed_bank_are_located(built: Built, copy: Path) -> None:
    def no_gelu(model: onnx.ModelProto) -> None:
        gelu = next(node for node in model.graph.node if node.op_type == "Gelu")
        gelu.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))

    edit_graph(copy, no_gelu)
    edit_graph(copy, no_gelu, "model.bank.onnx")
    found = failed(ae.check(copy, against=built.model, **{**ONE_CASE, "variants": ["slots", "bank"]}))
    assert {owed.id for owed in found} >= {"nodes/model.onnx", "nodes/model.bank.onnx"}
    assert "approximate" in next(owed.detail for owed in found if owed.id == "nodes/model.onnx")


def test_underived_constants_are_proved_by_exporting_again(built: Built, copy: Path) -> None:
    """A derivation without a constant, and an older bundle without a derivation: the graph is still exported again."""
    document = json.loads((copy / "derivation.json").read_text())
    document["made_by"]["onnx"] = "0.0.1"
    gone = [record["name"] for record in document["constants"] if record["name"].startswith("q")]
    document["constants"] = [record for record in document["constants"] if record["name"] not in gone]
    (copy / "derivation.json").unlink()
    (copy / "derivation.json").write_text(json.dumps(document))
    rehash(copy)
    report = ae.check(copy, against=built.model, **ONE_CASE)
    assert report.passed
    uncovered = [owed for owed in of(report, "constant/") if owed.status == "unverified"]
    assert {owed.where.split(": ")[1] for owed in uncovered} >= set(gone)
    assert all("derivation.json" in owed.detail for owed in uncovered if owed.where.split(": ")[1] in gone)
    assert of(report, "nodes/model.onnx")[0].status == "unverified"
    (copy / "derivation.json").unlink()
    rehash(copy, lambda manifest: replace(manifest, derivation=None))
    report = ae.check(copy, against=built.model, **ONE_CASE)
    assert {owed.status for owed in of(report, "constant/")} == {"exact"}


def test_a_reference_that_draws_random_numbers_shows_nothing(built: Built, tmp_path: Path) -> None:
    model = onnx.load(built.model)
    last = next(node for node in model.graph.node if node.output[0] == "hidden")
    last.output[0] = "still"
    noise = onnx.helper.make_node("RandomNormalLike", ["still"], ["noise"], scale=1e-4)
    model.graph.node.extend([noise, onnx.helper.make_node("Add", ["still", "noise"], ["hidden"])])
    onnx.save(model, tmp_path / "random.onnx")
    with pytest.raises(BaseModelError, match="is random"):
        ae.check(built.folder, against=tmp_path / "random.onnx", **ONE_CASE)
    plan, generator = plan_check(built.folder, **ONE_CASE), np.random.default_rng(0)

    class Random(CutRunner):
        def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None = None) -> Arrays:
            found = super().run(inputs, adapter)
            return {name: value + generator.normal(0, 1e-4, value.shape).astype("f") for name, value in found.items()}

    (owed,) = of(prove(plan, Reference("base.onnx", Random(built.base))), "reference/")
    assert owed.status == "failed"
    assert "`batch1_tokens1` twice: `hidden`: the largest error" in owed.detail
    assert "a model with random numbers" in owed.detail
    (owed,) = of(prove(plan, Reference("base.onnx", CutRunner(built.base))), "reference/")
    assert owed.status == "tested"


CLAIMS: Mapping[str, Callable[[Manifest], Manifest]] = {
    "batch_invariant": lambda said: replace(said, batch_invariant=False),
    "base_precision": lambda said: replace(said, base_precision="int8"),
    "minimum_onnxruntime": lambda said: replace(said, minimum_onnxruntime="1.0"),
    "bank.fillable": lambda said: replace(said, bank=said.bank and replace(said.bank, fillable=False)),
    "sites": lambda said: replace(
        said,
        sites=tuple(replace(site, tensor=said.sites[at - 1].tensor) for at, site in enumerate(said.sites)),
    ),
    "golden.absolute": lambda said: replace(
        said,
        golden=replace(said.golden, absolute={name: 1000 * each for name, each in said.golden.absolute.items()}),
    ),
}


@pytest.mark.parametrize("key", CLAIMS)
def test_false_claims_of_the_manifest_fail_verification(copy: Path, key: str) -> None:
    rehash(copy, CLAIMS[key])
    (owed,) = failed(ae.verify(copy))
    assert key in owed.where


def test_an_allowance_is_measured_again_on_its_own_inputs(copy: Path) -> None:
    """Rounding may affect other inputs far less than those of the golden vectors."""
    said = {name: 10 * each for name, each in read_manifest(copy).golden.absolute.items()}
    rehash(copy, lambda manifest: replace(manifest, golden=replace(manifest.golden, absolute=said)))
    bundle, least = OpenedBundle.open(copy), {(None, name): 1e-12 for name in said}
    half, nothing = {name: each / 2 for name, each in said.items()}, dict.fromkeys(said, 0.0)
    for needed, status in ((half, "tested"), (nothing, "failed")):
        claims = check_manifest(bundle, least, lambda _, found=needed: found, quick=False)
        owed = [one for one in claims if one.id.startswith("golden/base/allowance/")]
        assert {one.status for one in owed} == {status}, owed


def test_check_runs_mixed_batches_despite_a_false_manifest(copy: Path) -> None:
    rehash(copy, CLAIMS["batch_invariant"])
    report = ae.check(copy, variants=["bank"], cases=["batch3_tokens7"])
    assert any(result.mixed for result in report.outputs)


def test_golden_vectors_of_one_kind_alone_are_seen(copy: Path) -> None:
    record = read_manifest(copy).golden
    tensors = {
        name: value for name, value in read_tensors(copy / record.path).items() if name.startswith(record.cases[0])
    }
    (copy / record.path).unlink()
    write_tensors(copy / record.path, tensors)
    rehash(copy, lambda said: replace(said, golden=replace(said.golden, cases=record.cases[:1])))
    (owed,) = failed(ae.verify(copy))
    assert owed.id == "golden/base/cases"


def test_an_adapter_changed_in_all_its_copies_is_seen(built: Built, copy: Path, tmp_path: Path) -> None:
    """Change source, both files, the bank and the golden vectors together: only the user's copy reveals it."""
    own = {name: tmp_path / name for name in ("tone", "mood")}
    for name, place in own.items():
        shutil.copytree(built.folder / f"adapters/{name}", place)
    adapter = read_adapter(copy / "adapters/tone")
    weights = {name: value.copy() for name, value in adapter.weights.items()}
    weights["layers.0.ffn.up.weight"][0, 0] += np.float32(1e-3)
    removed = ae.remove(copy, ["tone"])
    write_adapter(replace(adapter, weights=weights), tmp_path / "changed" / "tone")
    ae.add(removed, [tmp_path / "changed" / "tone"], against=built.model)
    case: Mapping[str, Any] = {"cases": ["batch3_tokens7"], "variants": ["slots"], "only": ["tone", "mood"]}
    alone = ae.check(copy, **case)
    assert alone.passed
    assert {owed.id for owed in of(alone, "source/")} == {"source/tone", "source/mood"}
    assert {owed.status for owed in of(alone, "source/")} == {"unverified"}
    (owed,) = failed(ae.check(copy, adapters=list(own.values()), **case))
    assert owed.id == "source/tone"
    assert WORDS_UP in owed.detail
    with pytest.raises(UsageError, match="no adapter with this name"):
        ae.check(copy, adapters={"other": own["tone"]}, **case)


def test_an_earlier_report_is_a_ratchet(built: Built, copy: Path, tmp_path: Path) -> None:
    last = tmp_path / "last.json"
    case = {**ONE_CASE, "cases": ["batch3_tokens7"]}
    before = ae.check(built.folder, against=built.model, **case)
    last.write_text(json.dumps(before.to_json()))
    assert ae.check(built.folder, against=built.model, baseline=last, **case).passed
    found = failed(ae.check(built.folder, baseline=last, **case))
    assert "baseline/nodes/model.onnx" in {owed.id for owed in found}
    edit_adapter(copy, "tone", scaled(WORDS_UP, 1.0))
    rehash(copy, lambda said: replace(said, producer="another"))
    with pytest.raises(FormatError, match="another bundle"):
        ae.check(copy, baseline=last, **case)


def test_another_runtime_owes_no_recorded_runs(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = tmp_path / "last.json"
    before = ae.check(built.folder, quick=True)
    assert {"recorded-runs/base", "recorded-runs/tone"} <= {
        owed.id for owed in before.findings if owed.status == "tested"
    }
    last.write_text(json.dumps(before.to_json()))
    other = replace(recorded_runs.runs_here([]), runtime="1.21.0")
    monkeypatch.setattr(recorded_runs, "runs_here", lambda _: other)
    after = ae.check(built.folder, quick=True, baseline=last)
    assert after.passed
    assert "recorded-runs-not-compared/bundle" in {owed.id for owed in after.findings if owed.status == "unverified"}
