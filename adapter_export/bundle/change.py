"""Add adapters to a bundle and remove them, without its base: the graph with slots and the weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from adapter_export.bundle.entry import EntryWriter, check_bases, check_names, model_version_of
from adapter_export.bundle.flavours import BANK_FILE, store_bank
from adapter_export.bundle.golden import Golden, GoldenMaker
from adapter_export.bundle.self_check import check_flavours, self_check
from adapter_export.errors import AdapterError, BaseModelError, FileError
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.files import changed_folder
from adapter_export.format.inventory import list_files, verify_files
from adapter_export.format.manifest import AdapterRecord, BankRecord, Manifest
from adapter_export.format.manifest_json import MANIFEST_VERSION, read_manifest, write_manifest
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.budget import extent
from adapter_export.numerics.runner import Runner
from adapter_export.onnx_backend.base.numerics import numerics
from adapter_export.onnx_backend.graft.bank import bank_name, bank_rows, mask_name
from adapter_export.onnx_backend.slots import HeadSum, SlotPlan, adapter_output, head_sums, read_plan, slot_tensors
from adapter_export.onnx_backend.view.flow import flow_graph

Tell = Callable[[str], None]


def add_adapters(
    bundle: Path,
    adapters: Sequence[Adapter],
    *,
    references: Runner,
    site_map: str | None = None,
    allow_base_mismatch: bool = False,
    progress: Tell | None = None,
) -> Manifest:
    """Add adapters to a bundle; it stays as it was if that fails, also if the process is killed.

    Args:
        bundle: its folder.
        adapters: what is to be added; their topologies must be among those that the bundle was built with.
        references: computes their golden vectors, in the precision of the bundle; never the exported graph.
        site_map: the digest of the site map that the base of `references` was opened with.
        allow_base_mismatch: take adapters that were trained on another base.
        progress: is told each step before it begins.

    Returns:
        The new manifest.

    Raises:
        AdapterError: a name is taken, an adapter does something for which the graph has no slots, or it cannot share a
            bank with the others; `BaseMismatchError` is a kind of it.
        BaseModelError: the site map is another than that of the bundle.
        ParityError: the bundle with the new adapters does not compute what the reference computes.
        InputError: the bundle cannot be read, or its files are not those that were written.
        WriteError: the operating system refused a write.
    """
    tell = progress or _nobody
    opened = _opened(bundle, tell)
    names = [adapter.name for adapter in adapters]
    check_names(names, [record.name for record in opened.manifest.adapters])
    check_bases(adapters, opened.manifest.base, allow_mismatch=allow_base_mismatch)
    opened.check_site_map(site_map)
    for adapter in adapters:
        opened.check_slots(adapter)
    golden = opened.golden(references, adapters, tell)
    with changed_folder(bundle, opened.rewritten) as folder:
        tell("writing the adapters")
        entries = EntryWriter(folder, opened.plan, opened.heads, opened.model_version)
        records = [entries.adapter(adapter, golden[adapter.name]) for adapter in adapters]
        after = replace(opened.manifest, adapters=(*opened.manifest.adapters, *records))
        after = opened.finish(folder, after, adapters)
        tell("holding the bundle against its golden vectors")
        vectors = {**opened.vectors(after), **golden}
        self_check(folder, replace(after, adapters=tuple(records)), vectors)
        check_flavours(folder, after, vectors)
        opened.check_unchanged()
    return after


def remove_adapters(bundle: Path, names: Sequence[str], *, progress: Tell | None = None) -> Manifest:
    """Remove adapters from a bundle; it stays as it was if that fails, also if the process is killed.

    The slots stay, so that adapters of the same topology can be added later.

    Args:
        bundle: its folder.
        names: those of the adapters.
        progress: is told each step before it begins.

    Returns:
        The new manifest.

    Raises:
        AdapterError: there is no adapter of a name, or none would be left.
        InputError, WriteError, ParityError: as `add_adapters`.
    """
    tell = progress or _nobody
    opened = _opened(bundle, tell)
    records = opened.manifest.adapters
    kept = tuple(record for record in records if record.name not in names)
    _check_removal(names, records, kept)
    gone = [path for record in records if record not in kept for path in _paths(record)]
    with changed_folder(bundle, {*opened.rewritten, *gone}) as folder:
        after = opened.finish(folder, replace(opened.manifest, adapters=kept), [])
        tell("holding the bundle against its golden vectors")
        check_flavours(folder, after, opened.vectors(after))
        opened.check_unchanged()
    return after


@dataclass(frozen=True)
class _Opened:
    """A bundle that is to be changed.

    Attributes:
        folder: where it lies.
        manifest: as it is now.
        model: the graph with slots.
        plan: the slots.
    """

    folder: Path
    manifest: Manifest
    model: ir.Model
    plan: SlotPlan

    @property
    def heads(self) -> tuple[HeadSum, ...]:
        """The outputs that heads fill."""
        return head_sums(self.plan, [record.name for record in self.manifest.base_outputs])

    @property
    def model_version(self) -> int:
        """The number of the graph."""
        return self.manifest.model_version

    @property
    def rewritten(self) -> set[str]:
        """The files that are written anew in any case."""
        return {self.manifest.graphs["bank"], BANK_FILE} if "bank" in self.manifest.graphs else set()

    def check_unchanged(self) -> None:
        """Refuse to take the place of what somebody else made of the bundle meanwhile: it would be lost.

        Raises:
            FileError: it is not what it was.
        """
        if read_manifest(self.folder) != self.manifest:
            raise FileError("was changed by another process meanwhile", where=self.folder, fix="run the command again")

    def check_site_map(self, given: str | None) -> None:
        """Refuse a reference whose sites were moved by another site map than those of the bundle.

        Raises:
            BaseModelError: they were.
        """
        if model_version_of(self.manifest.base, self.plan, given) != self.model_version:
            raise BaseModelError(
                "was built with another site map, or without one",
                where=self.folder,
                found=given or "no site map",
                fix="give the site map that it was built with: `--site-map FILE`",
            )

    def check_slots(self, adapter: Adapter) -> None:
        """Refuse an adapter that has no place in the graph.

        Raises:
            AdapterError: it has none.
        """
        tensors = slot_tensors(self.plan, adapter)
        faults = [
            f"`{slot.name}` {list(tensors[slot.name].shape)}, not {list(slot.axes)}"
            for slot in self.manifest.slots
            for axis, size in zip(slot.axes, tensors[slot.name].shape, strict=True)
            if isinstance(axis, int) and axis != size
        ]
        if faults:
            raise AdapterError(
                "is of other widths than the base",
                where=f"adapter `{adapter.name}`",
                found="; ".join(faults),
                fix="give an adapter that was trained on this base",
            )

    def golden(self, references: Runner, adapters: Sequence[Adapter], tell: Tell) -> dict[str | None, Golden]:
        """Let the reference compute golden vectors on the inputs that the bundle has."""
        base = Golden.read(self.folder, self.manifest.golden, self.manifest.inputs)
        outputs = [record.name for record in self.manifest.base_outputs]
        size, stored = extent(flow_graph(self.model)), numerics(self.model).stored
        maker = GoldenMaker(
            references,
            base.cases,
            self.manifest.inputs,
            outputs,
            size,
            stored,
            self.manifest.base,
        )
        found: dict[str | None, Golden] = {}
        for adapter in adapters:
            tell(f"computing golden vectors of `{adapter.name}` with {references.description}")
            found[adapter.name] = maker.make(adapter, adapter_output(self.heads, adapter))
        return found

    def finish(self, folder: Path, manifest: Manifest, added: Sequence[Adapter]) -> Manifest:
        """Write the bank and, last of all, the manifest."""
        after = replace(manifest, version=MANIFEST_VERSION, bank=self._bank(folder, manifest, added))
        names = {adapter.name for adapter in added}
        new = {path for record in after.adapters if record.name in names for path in _paths(record)}
        fresh = self.rewritten | new
        hashed = {file.path: file.sha256 for file in self.manifest.files if file.path not in fresh}
        after = replace(after, files=list_files(folder, hashed))
        write_manifest(after, folder)
        return after

    def _bank(self, folder: Path, manifest: Manifest, added: Sequence[Adapter]) -> BankRecord | None:
        """Write the bank of these adapters; its graphs are those of the bundle."""
        if manifest.bank is None or not self.rewritten:
            return manifest.bank
        known = {record.name: record for record in manifest.adapters}
        names = [name for name in manifest.bank.rows if name is not None and name in known]
        adapters = [read_adapter(self.folder / known[name].source) for name in names] + [*added]
        rows = bank_rows(self.plan, self.heads, adapters)
        tensors = {bank_name(slot): tensor for slot, tensor in rows.tensors.items()}
        tensors |= {mask_name(output): tensor for output, tensor in rows.masks.items()}
        model = ir.load(self.folder / manifest.graphs["bank"])
        for name, tensor in tensors.items():
            model.graph.initializers[name].const_value = ir.Tensor(tensor, name=name)
        store_bank(model, folder)
        ir.save(model, folder / manifest.graphs["bank"])
        return replace(manifest.bank, rows=rows.names)

    def vectors(self, manifest: Manifest) -> dict[str | None, Golden]:
        """The golden vectors that the bundle has already."""
        found: dict[str | None, Golden] = {None: Golden.read(self.folder, manifest.golden, manifest.inputs)}
        for record in self.manifest.adapters:
            if record in manifest.adapters:
                found[record.name] = Golden.read(self.folder, record.golden, manifest.inputs)
        return found


def _opened(bundle: Path, tell: Tell) -> _Opened:
    manifest = read_manifest(bundle)
    tell("holding the files of the bundle against their hashes")
    verify_files(manifest, bundle)
    path = bundle / manifest.graphs["slots"]
    model = ir.load(path)
    return _Opened(bundle, manifest, model, read_plan(model, path))


def _paths(record: AdapterRecord) -> Collection[str]:
    """The files that belong to one adapter alone."""
    source = (f"{record.source}/adapter_graph.json", f"{record.source}/weights.safetensors")
    baked = () if record.baked is None else (record.baked,)
    return (record.onnx_adapter, record.safetensors, record.golden.path, *source, *baked)


def _check_removal(names: Sequence[str], records: Sequence[AdapterRecord], kept: Sequence[AdapterRecord]) -> None:
    known = [record.name for record in records]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise AdapterError(
            "the bundle has no adapter of this name",
            found=", ".join(f"`{name}`" for name in unknown),
            expected=f"one of {', '.join(f'`{name}`' for name in known)}",
            fix="check the name for a typing error",
        )
    if not kept:
        raise AdapterError(
            "a bundle has at least one adapter",
            found=f"{', '.join(f'`{name}`' for name in names)}, and no other",
            fix="add another one first, or delete the bundle",
        )


def _nobody(_: str) -> None:
    """Hears nothing."""
