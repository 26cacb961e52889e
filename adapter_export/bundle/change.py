"""Add adapters to a bundle and remove them, without its base: the graph with slots and the weights stay as they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden import Golden, GoldenMaker
from adapter_export.bundle.golden_batches import padding_by_name, without
from adapter_export.bundle.golden_data import GoldenDataMaker, GoldenSets, verified, with_written
from adapter_export.bundle.golden_media import check_media
from adapter_export.bundle.proof.invariants import with_padding
from adapter_export.bundle.variants import VARIANTS
from adapter_export.bundle.variants.variant import GraphDraft
from adapter_export.bundle.write import BundleWriter, check_bases, check_names, check_texts, model_version_of
from adapter_export.dtypes import AdapterPrecision
from adapter_export.errors import AdapterError, BaseModelError, FileError, argument, command, quoted
from adapter_export.format.manifest import AdapterRecord, Manifest
from adapter_export.format.manifest_json import CARD_FILE, MANIFEST_VERSION, REPORT_FILE, SIGNATURE_FILE, read_manifest
from adapter_export.format.readme import is_card
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.slot_form import rounded
from adapter_export.numerics.runner import Runner
from adapter_export.onnx_backend.slots import SlotPlan, head_sums, slot_tensors
from adapter_export.reporting import SILENT, Reporter
from adapter_export.runtime.adapter_file import write_adapter_file
from adapter_export.runtime.bundle import Bundle
from adapter_export.safe_io.output import changed_folder

_OF_THE_OLD = (SIGNATURE_FILE, REPORT_FILE, CARD_FILE)
"""Files that describe the bundle as it was before."""


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
    """Add adapters to a bundle; it stays as it was if that fails, also if the process is killed.

    Args:
        bundle: the bundle, or its folder.
        adapters: their topologies must be among those that the bundle was built with.
        references: computes golden data in the precision of the bundle; never the exported graph.
        site_map: the digest of the site map that the base was opened with.
        allow_base_mismatch: take adapters that were trained on other weights.
        precision: how their files store them; they are rounded to it.
        reporter: receives each step, and notes of adapters that change nothing and of a signature that is gone.

    Raises:
        AdapterError: a name is taken, an adapter does something for which the graph has no slots, or it cannot share a
            bank with the others; `BaseMismatchError` is a kind of it.
        BaseModelError: the site map is another than that of the bundle.
        ParityError: the bundle with the new adapters does not compute what the reference computes.
        InputError: the bundle cannot be read, or its files are not those that were written.
        WriteError: the operating system refused a write.
    """
    old, writer = _opened(bundle, reporter)
    manifest = old.manifest
    check_names([adapter.name for adapter in adapters], [record.name for record in manifest.adapters])
    check_bases(adapters, manifest.base, allow_mismatch=allow_base_mismatch)
    adapters = [rounded(adapter, precision) for adapter in adapters]
    _check_fit(adapters, old, writer, site_map)
    cases = old.golden(None).cases
    vectors = GoldenMaker(references, cases, old.base_outputs, old.allowance(cases), manifest.base, old.checksums)
    data = GoldenDataMaker(vectors, writer.heads, manifest.inputs, reporter)
    pairs = [(adapter, data.of_adapter(adapter)) for adapter in adapters]
    sets = _with_added(old, data, pairs, padding_by_name(manifest, writer.plan, adapters))
    _note_unsigned(old.folder, reporter)
    with changed_folder(old.folder, {*_rewritten(manifest), *_OF_THE_OLD}) as folder:
        _check_unchanged(old)
        reporter.step("writing the adapters")
        writer = replace(writer, folder=folder)
        records = [writer.adapter(adapter, golden, precision=precision) for adapter, golden in pairs]
        after = sets.write(writer, replace(manifest, adapters=(*manifest.adapters, *records)))
        after = with_written(after, references, adapters, base=False)
        return _finish(old, writer, after, adapters, references, reporter)


def remove_adapters(bundle: Path, names: Sequence[str], *, reporter: Reporter = SILENT) -> Manifest:
    """Remove adapters from a bundle; it stays as it was if that fails, also if the process is killed.

    The slots stay, so that adapters of the same topology can be added later.

    Raises:
        AdapterError: there is no adapter of a name, or none would be left.
        InputError, WriteError, ParityError: as `add_adapters`.
    """
    old, writer = _opened(bundle, reporter)
    records = old.manifest.adapters
    kept = tuple(record for record in records if record.name not in names)
    known = [record.name for record in records]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise AdapterError(
            "the bundle has no adapter of this name",
            found=quoted(unknown),
            expected=f"one of {quoted(known)}",
            fix="check the name for a typing error",
        )
    if not kept:
        raise AdapterError(
            "a bundle has at least one adapter",
            found=f"{quoted(names)}, and no other",
            fix="add another one first, or delete the bundle",
        )
    sets = _without_removed(old, names)
    gone = [path for record in records if record not in kept for path in _paths(record)]
    _note_unsigned(bundle, reporter)
    with changed_folder(bundle, {*_rewritten(old.manifest), *_OF_THE_OLD, *gone}) as folder:
        _check_unchanged(old)
        head = None if old.manifest.head in names else old.manifest.head
        writer = replace(writer, folder=folder)
        after = sets.write(writer, replace(old.manifest, adapters=kept, head=head))
        return _finish(old, writer, after, [], None, reporter)


def _check_fit(adapters: Sequence[Adapter], old: OpenedBundle, writer: BundleWriter, site_map: str | None) -> None:
    """Refuse adapters for which the graph has no slots, or that read other texts or media than the bundle."""
    manifest = old.manifest
    if model_version_of(manifest.base, writer.plan, site_map) != writer.model_version:
        raise BaseModelError(
            "was built with another site map, or without one",
            where=old.folder,
            found=site_map or "no site map",
            fix=f"give the site map that it was built with: {argument('site_map', words='FILE')}",
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
    """Return the golden sets of a bundle with those of new adapters."""
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
        texts = replace(texts, sets=tuple(one for one in texts.sets if one.adapter not in names))
    if batches is not None:
        batches = without(batches, names)
    if media is not None:
        media = replace(media, sets=tuple(one for one in media.sets if one.adapter not in names))
    return GoldenSets(texts, batches, media)


def _opened(bundle: Path | OpenedBundle, reporter: Reporter) -> tuple[OpenedBundle, BundleWriter]:
    """Open a bundle that is to be changed, and return what writes into it."""
    if isinstance(bundle, Path):
        reporter.step("comparing the files of the bundle with their hashes")
        bundle = OpenedBundle.open(bundle, copy=False)
    heads = head_sums(bundle.plan, bundle.base_outputs)
    return bundle, BundleWriter(bundle.folder, bundle.plan, heads, bundle.manifest.model_version)


def _rewritten(manifest: Manifest) -> set[str]:
    """The files that are written anew in any case."""
    media = None if manifest.media is None else manifest.media.golden
    golden = {path for path in (manifest.golden_texts, manifest.golden_batches, media) if path is not None}
    return golden.union(*(variant.refilled(manifest) for variant in VARIANTS.values()))


def write_fitted(adapter: Adapter, path: Path, folder: Path, manifest: Manifest) -> None:
    """Write the `.onnx_adapter` file of a whole adapter for a bundle, which stays as it is.

    Nothing is compared with a reference, as `add_adapters` does it.

    Args:
        adapter: for which the graph has slots.
        path: of the new file.
        folder: with the graphs of the bundle.
        manifest: of the bundle.

    Raises:
        AdapterError: it does something for which the graph has no slots; `BaseMismatchError` is a kind of it.
        BaseModelError: the bundle was built with a site map, of which an adapter does not tell.
        WriteError: the operating system refused a write.
    """
    check_bases([adapter], manifest.base, allow_mismatch=False)
    plan = OpenedBundle(Bundle(folder, manifest, verified=False)).plan
    if model_version_of(manifest.base, plan, None) != manifest.model_version:
        fix = f"run {command('add(bundle, [adapter], against=base)', 'add BUNDLE ADAPTER --against MODEL')} with it"
        raise BaseModelError("was built with a site map, which adapters do not name", where=folder, fix=fix)
    _check_slots(adapter, plan, manifest)
    if manifest.text is not None:
        check_texts([adapter], manifest.text.digest, manifest.max_tokens or 0)
    write_adapter_file(path, slot_tensors(plan, adapter), manifest.model_version)


def _note_unsigned(folder: Path, reporter: Reporter) -> None:
    """Say that what was made from the old manifest goes with it."""
    if (folder / SIGNATURE_FILE).exists():
        sign = command('sign("bundle", key=…)', f"sign {folder} --key KEY")
        reporter.note(f"the signature of the bundle before this change is gone; sign the new one with {sign}")
    if is_card(folder / CARD_FILE):
        reporter.note(f"`{CARD_FILE}`, the model card of the earlier bundle, is gone; `push` makes a new one")


def _paths(record: AdapterRecord) -> Collection[str]:
    """The files that belong to one adapter alone."""
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
    """Write the graphs that hold adapters and the manifest, and verify the bundle.

    Raises:
        FileError: somebody else changed the bundle meanwhile; that would be lost.
    """
    draft = GraphDraft(writer.folder, writer.plan, writer.heads, _in_bank(old, manifest, added), old.slots_model)
    for variant in VARIANTS.values():
        variant.refill(draft, old)
    manifest = replace(manifest, version=MANIFEST_VERSION, bank=draft.bank, fanout=draft.fanout)
    new = {path for record in manifest.adapters if record not in old.manifest.adapters for path in _paths(record)}
    rewritten = {*_rewritten(manifest), *new}
    hashed = {file.path: file.sha256 for file in old.manifest.files if file.path not in rewritten}
    opened = OpenedBundle.being_made(writer.folder, manifest)
    opened.manifest = _tried_out(opened, reporter)
    after = writer.manifest(verified(opened, writer, references, added, reporter), hashed)
    _check_unchanged(old)
    return after


def _tried_out(bundle: OpenedBundle, reporter: Reporter) -> Manifest:
    """Return the manifest with what rows and padding change, as it is tried out: earlier releases tried less."""
    said = bundle.manifest
    found = replace(with_padding(bundle) if said.padding_neutral else said, batch_invariant=bundle.batch_invariant)
    for name in ("batch_invariant", "padding_neutral", "counts_padding"):
        before, after = getattr(said, name), getattr(found, name)
        if before != after:
            reporter.note(f"the manifest said `{name}` is {before}; tried out, it is {after}")
    return found


def _check_unchanged(old: OpenedBundle) -> None:
    """Raise `FileError` if the bundle was exchanged since it was opened, before its lock was held."""
    if read_manifest(old.folder) != old.manifest:
        raise FileError("was changed by another process meanwhile", where=old.folder, fix="run the command again")


def _in_bank(old: OpenedBundle, manifest: Manifest, added: Sequence[Adapter]) -> list[Adapter]:
    """Return the adapters of the bank as it will be: those that stay in the order of its rows, then new ones."""
    rows, known = old.manifest.bank, {record.name for record in manifest.adapters}
    stay = () if rows is None else rows.rows
    return [*(old.source(name) for name in stay if name is not None and name in known), *added]


def _check_slots(adapter: Adapter, plan: SlotPlan, manifest: Manifest) -> None:
    """Raise an `AdapterError` for an adapter that has no place in the graph."""
    tensors = slot_tensors(plan, adapter)
    faults = [
        f"`{slot.name}` {list(tensors[slot.name].shape)}, not {list(slot.axes)}"
        for slot in manifest.slots
        for axis, size in zip(slot.axes, tensors[slot.name].shape, strict=True)
        if isinstance(axis, int) and axis != size and tensors[slot.name].shape != slot.neutral
    ]
    if faults:
        raise AdapterError(
            "is of other widths than the base",
            where=f"adapter `{adapter.name}`",
            found="; ".join(faults),
            fix="give an adapter that was trained on this base",
        )
