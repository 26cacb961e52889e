"""Every field of the manifest is noticed when it changes, or is listed here with the reason why it need not be.

Hashes are right after each change, as if the author of the bundle had made it. A field has several changes, of which
one is tried here; with `EVERY_CHANGE=1` in the environment, all of them, which takes a quarter of an hour.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from changed_records import changed_records
from once import once
from small_bundle import text_bundle
from tiny_generators import generating

import adapter_export as ae
from adapter_export.errors import AdapterExportError
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import MANIFEST_FILE, read_manifest, write_manifest

ORDER = "reversed"
STEERS_NOTHING: Mapping[str, tuple[str, ...]] = {
    # notes for readers
    "Manifest.producer": (),
    "Manifest.version": ("1.0.1",),
    "GoldenRecord.reference": (),
    "GoldenRecord.reasons": (),
    # written anew with every manifest
    "Manifest.checksum": (),
    # records have names, by which they are found; their order is free
    "Manifest.inputs": (ORDER,),
    "Manifest.outputs": (ORDER,),
    "Manifest.adapters": (ORDER,),
    "Manifest.files": (ORDER,),
    "GoldenRecord.cases": (ORDER,),
    "GoldenRecord.written": (ORDER,),
    # the name of a free axis that no other input or output has
    "OutputRecord.axes": ("classesx",),
    # a classifier's default
    "Task.activation": ("null",),
}
"""Fields that steer no engine, with the changes that pass; none named: any change."""

EVIDENCE: Mapping[str, tuple[str, ...]] = {
    # measured when the bundle was built
    "GoldenRecord.separation": ("null",),
    "SeparationRecord.least": (),
    "SeparationRecord.fault": (),
    "SeparationRecord.outputs": (),
    "SeparationRecord.weak": (),
    "SeparationRecord.nearest": (),
    "NearestRecord.adapter": (),
    "NearestRecord.separation": (),
    # what its author calls an adapter, where no row of a bank and no golden text names it
    "AdapterRecord.name": ("'ax'",),
    # a smaller budget is stricter
    "GoldenRecord.absolute": ("e-0",),
    # digests, and where they were taken: elsewhere they are not compared
    "GoldenRecord.recorded": (),
    "RecordedRuns.cases": (),
    "RecordedRuns.runtime": (),
    "RecordedRuns.provider": (),
    "RecordedRuns.processor": (),
    "RecordedRuns.features": (),
    # fewer golden data
    "GoldenRecord.written": ("item removed",),
    "WrittenRecord.tokens": ("the last item removed",),
}
"""Fields that are evidence themselves: only a signature shows that there was more of it, or how it was measured."""

AGAINST_MODEL = {
    "Manifest.sites",
    "SiteRecord.name",
    "SiteRecord.role",
    "SiteRecord.layer",
    "SiteRecord.width",
    "SiteRecord.path",
    "SiteRecord.tensor",
    "Manifest.lengths",
    "Lengths.minimum",
    "Lengths.maximum",
    "GenerationRecord.start",
    "GenerationRecord.suppressed",
    "GenerationRecord.suppressed_first",
    "GenerationRecord.last",
}
"""Fields that `check --against` derives again from the model."""


def _listed(field: str, change: str) -> bool:
    """Return whether a change of a field is listed as one that passes."""
    lists = [one[field] for one in (STEERS_NOTHING, EVIDENCE) if field in one]
    return any(not allowed or any(part in change for part in allowed) for allowed in lists)


def _passes(copy: Path, manifest: Manifest, model: Path | None = None) -> bool:
    """Return whether a bundle with this manifest is loaded and passes: `verify`, or `check` against a model."""
    (copy / MANIFEST_FILE).unlink(missing_ok=True)
    try:
        write_manifest(manifest, copy)
        report = ae.verify(copy) if model is None else ae.check(copy, against=model)
    except AdapterExportError:
        return False
    return report.passed


def _chosen(manifest: Manifest) -> list[tuple[str, str, Manifest]]:
    """Return the changes to try: all that must be noticed, or one of each field."""
    fields: dict[str, list[tuple[str, str, Manifest]]] = {}
    for field, change, changed in changed_records(manifest):
        if not _listed(field, change):
            fields.setdefault(field, []).append((field, change, changed))
    every = "EVERY_CHANGE" in os.environ
    chosen = [changes if every else [changes[at % len(changes)]] for at, changes in enumerate(fields.values())]
    return [change for changes in chosen for change in changes]


def _unnoticed(bundle: Path, model: Path, folder: Path) -> list[str]:
    """Change each field of a bundle's manifest; return those that neither `verify` nor `check` notices."""
    copy, manifest = shutil.copytree(bundle, folder / "bundle"), read_manifest(bundle)
    assert _passes(copy, manifest)
    assert _passes(copy, manifest, model)
    unnoticed = list[str]()
    for field, change, changed in _chosen(manifest):
        if not _passes(copy, changed):
            continue
        if field not in AGAINST_MODEL or _passes(copy, changed, model):
            unnoticed.append(f"{field}: {change}")
    return unnoticed


@pytest.mark.extended
def test_changes_of_every_classifier_field_are_noticed(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    bundle = text_bundle(tmp_path_factory)
    assert _unnoticed(bundle, bundle.with_name("base.onnx"), tmp_path) == []


@pytest.mark.extended
def test_changes_of_every_decoder_field_are_noticed(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    folder = generating(tmp_path_factory, "llama")

    def build(target: Path) -> None:
        adapter = ae.import_peft(folder / "a", folder / "base.pt", name="a")
        ae.build(folder / "base.pt", [adapter], target / "bundle", variants=("slots",))

    bundle = once(tmp_path_factory, "decoder_of_one_adapter", build) / "bundle"
    assert _unnoticed(bundle, folder / "base.pt", tmp_path) == []
