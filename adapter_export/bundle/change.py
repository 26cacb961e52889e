"""Add and remove adapters of a bundle without its base: the graph with slots and the weights do not change."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.golden_batches import padding_by_name, without
from adapter_export.bundle.golden.golden_data import GoldenDataMaker, GoldenSets, add_generated_texts, prove_and_record
from adapter_export.bundle.golden.golden_media import check_media
from adapter_export.bundle.golden.golden_vectors import Golden, GoldenMaker
from adapter_export.bundle.proof.invariants import measure_padding
from adapter_export.bundle.variants import VARIANTS
from adapter_export.bundle.variants.variant import GraphDraft
from adapter_export.bundle.write import BundleWriter, check_bases, check_names, check_texts, model_version_of
from adapter_export.dtypes import AdapterPrecision
from adapter_export.errors import AdapterError, BaseModelError, FileError
from adapter_export.format.manifest import AdapterRecord, Manifest
from adapter_export.format.manifest_json import (
    CARD_FILE,
    MANIFEST_VERSION,
    PRODUCER,
    REPORT_FILE,
    SIGNATURE_FILE,
    read_manifest,
)
from adapter_export.format.readme import is_card
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.slot_form import rounded
from adapter_export.numerics.runner import Runner
from adapter_export.onnx_backend.slots import SlotPlan, head_sums, slot_tensors
from adapter_export.reporting import SILENT, Reporter
from adapter_export.runtime.adapter_file import write_adapter_file
from adapter_export.runtime.bundle import Bundle
from adapter_export.safe_io.output import change_folder
from adapter_export.words import argument, command, quoted

_OF_THE_OLD = (SIGNATURE_FILE, REPORT_FILE, CARD_FILE)
"""Files that describe the previous version of the bundle."""


def add_adapters(
    bundle: Path | OpenedBundle,
    adapters: Sequence[Adapter],
    *,
    references: Runner,
    site_map: str | None = None,
    allow_base_mismatch: bool = False,
    precision: AdapterPrecision = "float32",
    reporter: Reporter = SILENT,
) -> Manifest:
    """Add adapters to a bundle. It is unchanged after an error or if the process is killed.

    Args:
        bundle: the bundle, or its folder.
        adapters: their topologies must be among those that the bundle was built with.
        references: computes golden data in the precision of the bundle; never the exported graph.
        site_map: digest of the site map that the base was opened with.
        allow_base_mismatch: whether to accept adapters trained on other weights.
        precision: storage precision of the adapter files; the adapters are rounded to it.
        reporter: receives each step, and notes on adapters without effect and on a removed signature.

    Raises:
        AdapterError: a name is in use, the graph has no slots for an adapter, or it cannot share a bank with
            the others; `BaseMismatchError` is a subclass.
        BaseModelError: the site map does not match the bundle's.
        ParityError: the bundle with the new adapters does not match the reference.
        InputError: the bundle cannot be read, or its files do not match their SHA-256.
        WriteError: the operating system refused a write.
    """
    old, writer = _open(bundle, reporter)
    manifest = old.manifest
    check_names([adapter.name for adapter in adapters], [record.name for record in manifest.adapters])
    check_bases(adapters, manifest.base, allow_mismatch=allow_base_mismatch)
    adapters = [rounded(adapter, precision) for adapter in adapters]
    _check_fit(adapters, old, writer, site_map)
    cases = old.golden(None).cases
    allowance = old.allowance(cases)
    vectors = GoldenMaker(
        references, cases, old.base_outputs, allowance, manifest.base, old.checksums, manifest.sketches
    )
    data = GoldenDataMaker(vectors, writer.heads, manifest.inputs, reporter)
    pairs = [(adapter, data.of_adapter(adapter)) for adapter in adapters]
    sets = _with_added(old, data, pairs, padding_by_name(manifest, writer.plan, adapters))
    _note_unsigned(old.folder, reporter)
    with change_folder(old.folder, {*_rewritten(manifest), *_OF_THE_OLD}) as folder:
        _check_unchanged(old)
        reporter.step("writing the adapters")
        writer = replace(writer, folder=folder)
        records = [writer.adapter(adapter, golden, precision=precision) for adapter, golden in pairs]
        after = sets.write(writer, replace(manifest, adapters=(*manifest.adapters, *records)))
        after = add_generated_texts(after, references, adapters, base=False, brief=old.has_many_weights)
        return _finish(old, writer, after, adapters, references, reporter)


def remove_adapters(bundle: Path, names: Sequence[str], *, reporter: Reporter = SILENT) -> Manifest:
    """Remove adapters from a bundle. It is unchanged after an error or if the process is killed.

    The slots remain, so that adapters of the same topology can be added later.

    Raises:
        AdapterError: an adapter does not exist, or none would be left.
        InputError, WriteError, ParityError: as for `add_adapters`.
    """
    old, writer = _open(bundle, reporter)
    records = old.manifest.adapters
    remaining = tuple(record for record in records if record.name not in names)
    known = [record.name for record in records]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise AdapterError(
            "the bundle has no adapter with this name",
            found=quoted(unknown),
            expected=f"one of {quoted(known)}",
            fix="check the spelling",
        )
    if not remaining:
        raise AdapterError(
            "a bundle needs at least one adapter",
            found=f"only {quoted(names)}",
            fix="add another one first, or delete the bundle",
        )
    sets = _without_removed(old, names)
    gone = [path for record in records if record not in remaining for path in _paths(record)]
    _note_unsigned(bundle, reporter)
    with change_folder(bundle, {*_rewritten(old.manifest), *_OF_THE_OLD, *gone}) as folder:
        _check_unchanged(old)
        head = None if old.manifest.head in names else old.manifest.head
        writer = replace(writer, folder=folder)
        after = sets.write(writer, replace(old.manifest, adapters=remaining, head=head))
        return _finish(old, writer, after, [], None, reporter)


def _check_fit(adapters: Sequence[Adapter], old: OpenedBundle, writer: BundleWriter, site_map: str | None) -> None:
    """Reject adapters for which the graph has no slots, or whose texts or media differ from the bundle's."""
    manifest = old.manifest
    if model_version_of(manifest.base, writer.plan, site_map) != writer.model_version:
        raise BaseModelError(
            "was built with a different site map, or without one",
            where=old.folder,
            found=site_map or "no site map",
            fix="pass the site map that it was built with: " + argument("site_map", words="FILE"),
        )
    for adapter in adapters:
        _check_slots(adapter, writer.plan, manifest)
    if manifest.text is not None:
        check_texts(adapters, manifest.text.digest, manifest.max_tokens or 0)
    if manifest.media is not None:
        check_media(adapters, manifest.media)


def _with_added(
    old: OpenedBundle, data: GoldenDataMaker, pairs: Sequence[tuple[Adapter, Golden]], pads: Mapping[str, bool]
) -> GoldenSets:
    """Return the golden sets of a bundle, extended by those of new adapters."""
    texts, media, record = old.texts(), old.media(), old.manifest.media
    if texts is not None:
        new = data.texts(old.tokenizer, None, pairs, pads).sets[1:]
        texts = replace(texts, sets=(*texts.sets, *new))
    if media is not None and record is not None:
        media = data.media(record, media, pairs)
    batches = data.batch_maker(old.manifest, pads, old).add(old.batches(), pairs, data.heads)
    return GoldenSets(texts, batches, media)


def _without_removed(old: OpenedBundle, names: Sequence[str]) -> GoldenSets:
    """Return the golden sets of a bundle without those of some adapters."""
    texts, batches, media = old.texts(), old.batches(), old.media()
    if texts is not None:
        texts = replace(texts, sets=tuple(golden_set for golden_set in texts.sets if golden_set.adapter not in names))
    if batches is not None:
        batches = without(batches, names)
    if media is not None:
        media = replace(media, sets=tuple(golden_set for golden_set in media.sets if golden_set.adapter not in names))
    return GoldenSets(texts, batches, media)


def _open(bundle: Path | OpenedBundle, reporter: Reporter) -> tuple[OpenedBundle, BundleWriter]:
    """Open a bundle for a change, and return it with its writer."""
    if isinstance(bundle, Path):
        reporter.step("verifying the SHA-256 of the bundle's files")
        bundle = OpenedBundle.open(bundle, copy=False)
    heads = head_sums(bundle.plan, bundle.base_outputs)
    return bundle, BundleWriter(bundle.folder, bundle.plan, heads, bundle.manifest.model_version)


def _rewritten(manifest: Manifest) -> set[str]:
    """Return the files that every change rewrites."""
    media = None if manifest.media is None else manifest.media.golden
    golden = {path for path in (manifest.golden_texts, manifest.golden_batches, media) if path is not None}
    return golden.union(*(variant.refilled(manifest) for variant in VARIANTS.values()))


def write_fitted(adapter: Adapter, path: Path, folder: Path, manifest: Manifest) -> None:
    """Write the `.onnx_adapter` file of a complete adapter for a bundle, which is not changed.

    Unlike `add_adapters`, it compares nothing with a reference.

    Args:
        adapter: an adapter for which the graph has slots.
        path: path of the new file.
        folder: the folder with the bundle's graphs.
        manifest: the bundle's manifest.

    Raises:
        AdapterError: the graph has no slots for the adapter; `BaseMismatchError` is a subclass.
        BaseModelError: the bundle was built with a site map, which adapters do not record.
        WriteError: the operating system refused a write.
    """
    check_bases([adapter], manifest.base, allow_mismatch=False)
    plan = OpenedBundle(Bundle(folder, manifest, verified=False)).plan
    if model_version_of(manifest.base, plan, None) != manifest.model_version:
        fix = (
            "run " + command("add(bundle, [adapter], against=base)", "add BUNDLE ADAPTER --against MODEL") + " with it"
        )
        raise BaseModelError("was built with a site map, which adapters do not record", where=folder, fix=fix)
    _check_slots(adapter, plan, manifest)
    if manifest.text is not None:
        check_texts([adapter], manifest.text.digest, manifest.max_tokens or 0)
    write_adapter_file(path, slot_tensors(plan, adapter), manifest.model_version)


def _note_unsigned(folder: Path, reporter: Reporter) -> None:
    """Note which files of the previous version are removed."""
    if (folder / SIGNATURE_FILE).exists():
        sign = command('sign("bundle", key=…)', f"sign {folder} --key KEY")
        reporter.warn("removed the signature, which this change invalidates; sign the bundle again with " + sign)
    if is_card(folder / CARD_FILE):
        reporter.warn(f"removed `{CARD_FILE}`, the outdated model card; `push` writes a new one")


def _paths(record: AdapterRecord) -> Collection[str]:
    """Return the files that belong to one adapter only."""
    source = (f"{record.source}/adapter_graph.json", f"{record.source}/weights.safetensors")
    baked = () if record.baked is None else (record.baked,)
    return (record.onnx_adapter, record.safetensors, *record.golden.files, *source, *baked)


def _finish(
    old: OpenedBundle,
    writer: BundleWriter,
    manifest: Manifest,
    added: Sequence[Adapter],
    references: Runner | None,
    reporter: Reporter,
) -> Manifest:
    """Write the graphs that contain adapters, and the manifest, and verify the bundle.

    Raises:
        FileError: another process changed the bundle in the meantime; that change would be lost.
    """
    draft = GraphDraft(writer.folder, writer.plan, writer.heads, _in_bank(old, manifest, added), old.slots_model)
    for variant in VARIANTS.values():
        variant.refill(draft, old)
    manifest = replace(manifest, version=MANIFEST_VERSION, bank=draft.bank, fanout=draft.fanout)
    new = {path for record in manifest.adapters if record not in old.manifest.adapters for path in _paths(record)}
    rewritten = {*_rewritten(manifest), *new}
    hashed = {file.path: file.sha256 for file in old.manifest.files if file.path not in rewritten}
    opened = OpenedBundle.open_staged(writer.folder, manifest)
    opened.manifest = _measure_again(opened, reporter)
    unchanged = {None, *(record.name for record in manifest.adapters)} - {adapter.name for adapter in added}
    after = writer.manifest(prove_and_record(opened, writer, references, added, reporter, unchanged=unchanged), hashed)
    _check_unchanged(old)
    return after


def _measure_again(bundle: OpenedBundle, reporter: Reporter) -> Manifest:
    """Return the manifest with the effect of rows and padding measured again: earlier releases measured less.

    What this release measured stays, since the graph with slots does not change.
    """
    manifest = bundle.manifest
    if manifest.producer == PRODUCER:
        return manifest
    measured = replace(
        measure_padding(bundle) if manifest.padding_neutral else manifest, batch_invariant=bundle.batch_invariant
    )
    for name in ("batch_invariant", "padding_neutral", "counts_padding"):
        before, after = getattr(manifest, name), getattr(measured, name)
        if before != after:
            reporter.warn(f"`{name}` is {after} as measured now; the manifest said {before}")
    return measured


def _check_unchanged(old: OpenedBundle) -> None:
    """Raise `FileError` if the bundle was replaced after it was opened and before its lock was acquired."""
    if read_manifest(old.folder) != old.manifest:
        raise FileError("was changed by another process in the meantime", where=old.folder, fix="run the command again")


def _in_bank(old: OpenedBundle, manifest: Manifest, added: Sequence[Adapter]) -> list[Adapter]:
    """Return the adapters of the future bank: remaining ones in the order of its rows, then new ones."""
    rows, known = old.manifest.bank, {record.name for record in manifest.adapters}
    stay = () if rows is None else rows.rows
    return [*(old.source(name) for name in stay if name is not None and name in known), *added]


def _check_slots(adapter: Adapter, plan: SlotPlan, manifest: Manifest) -> None:
    """Raise an `AdapterError` for an adapter without slots in the graph."""
    tensors = slot_tensors(plan, adapter)
    faults = [
        f"`{slot.name}` {list(tensors[slot.name].shape)}, expected {list(slot.axes)}"
        for slot in manifest.slots
        for axis, size in zip(slot.axes, tensors[slot.name].shape, strict=True)
        if isinstance(axis, int) and axis != size and tensors[slot.name].shape != slot.neutral
    ]
    if faults:
        raise AdapterError(
            "has widths that do not match the base",
            where=f"adapter `{adapter.name}`",
            found="; ".join(faults),
            fix="use an adapter trained on this base",
        )
