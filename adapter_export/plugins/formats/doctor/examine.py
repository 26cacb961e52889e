"""Examine an adapter that the importer accepted or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapter_export.bases.base import Base
from adapter_export.bases.base_view import BaseView, ImportRequest
from adapter_export.errors import AdapterExportError, InputError, UsageError
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.evaluate_adapter import check_fit
from adapter_export.plugins.formats.doctor.adapter_files import PREFIX, AdapterFiles, Library, read_adapter_files
from adapter_export.plugins.formats.doctor.causes import Case, cause_of_error, causes_of
from adapter_export.plugins.formats.doctor.diagnosis import Cause, Diagnosis
from adapter_export.plugins.formats.doctor.other_tools import Reader, tool_readings
from adapter_export.plugins.formats.doctor.site_changes import Factor, SiteChange, groups_of, site_changes
from adapter_export.plugins.formats.importers.match import Renaming
from adapter_export.plugins.formats.importers.peft.head import HeadChoice
from adapter_export.plugins.formats.importers.peft.peft_folder import parse_folder
from adapter_export.plugins.formats.importers.peft.peft_importer import import_read
from adapter_export.plugins.formats.importers.peft.peft_options import Options, read_options
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.regular_files import open_regular
from adapter_export.sites.site import Site


@dataclass(frozen=True)
class Subject:
    """An adapter's folder, and what the importer made of it.

    Attributes:
        folder: the folder.
        library: the library that wrote it.
        request: options of the import.
        leave_out_head: whether the head is ignored.
        outcome: the imported adapter, or the refusal.
        notes: notes of the import.
    """

    folder: Path
    library: Library
    request: ImportRequest
    leave_out_head: bool
    outcome: Adapter | AdapterExportError
    notes: tuple[str, ...]


def examine(subject: Subject, base: Base, reporter: Reporter = SILENT) -> Diagnosis:
    """Return the diagnosis of an adapter of PEFT or AdapterHub."""
    name = subject.request.name
    error = subject.outcome if isinstance(subject.outcome, AdapterExportError) else None
    try:
        files = read_adapter_files(subject.folder, subject.library, subject.request.member, subject.request.read_pickle)
    except (InputError, UsageError) as unreadable:
        if error is None:  # a setup of several adapters
            return _of_adapter(subject, base, name, reporter)
        return Diagnosis(name, subject.library, None, 0, False, causes=(_cause_of_folder(subject.folder, unreadable),))
    case = _case(subject, files, base, reporter)
    kind = files.kind or (None if case.adapter is None else case.adapter.kind)
    return Diagnosis(
        name,
        subject.library,
        kind,
        len(files.tensors),
        error is None,
        groups_of(case.changes),
        _head_of(case.adapter),
        tuple(case.tools.values()),
        causes_of(case),
        subject.notes,
    )


def examine_own(adapter: Adapter, base: Base, reporter: Reporter = SILENT) -> Diagnosis:
    """Return the diagnosis of an adapter of this package."""
    view, causes = base.view, []
    try:
        check_fit([adapter], view.sites)
    except InputError as error:
        refused = (cause_of_error(error),)
        return Diagnosis(adapter.name, "adapter-export", adapter.kind, len(adapter.weights), False, causes=refused)
    if adapter.base != view.fingerprint:
        measured = f"{adapter.base[:19]}…"
        causes.append(
            Cause(
                "other-base",
                "broken",
                measured,
                f"{view.fingerprint[:19]}…, this base",
                "it was trained on other weights",
                "pass the base that it was trained on",
            )
        )
    files = AdapterFiles(Path(), "adapter-export", {}, adapter.weights)
    changes = _changes(adapter, view, lambda _: None, reporter)
    case = Case(files, view, {}, None, adapter, changes, {}, lambda _: False)
    facts = (adapter.name, "adapter-export", adapter.kind, len(adapter.weights), not causes)
    return Diagnosis(*facts, groups_of(changes), _head_of(adapter), (), (*causes, *causes_of(case)))


def _of_adapter(subject: Subject, base: Base, name: str, reporter: Reporter) -> Diagnosis:
    """Return the diagnosis of a composition, from its graphs."""
    assert isinstance(subject.outcome, Adapter), "the importer read what the doctor cannot"
    found = examine_own(replace(subject.outcome, base=base.fingerprint), base, reporter)
    return replace(found, adapter=name, library=subject.library, notes=subject.notes)


def _case(subject: Subject, files: AdapterFiles, base: Base, reporter: Reporter) -> Case:
    error = subject.outcome if isinstance(subject.outcome, AdapterExportError) else None
    adapter = subject.outcome if isinstance(subject.outcome, Adapter) else None
    view, config = base.view, _config_of(base)
    options = _options(files)
    changes = () if adapter is None else _changes(adapter, view, _factor_at(adapter, options), reporter)
    case = Case(files, view, config, error, adapter, changes, {}, _importer(subject, view))
    factors = {} if options is None else _factors(files, options)
    folder = base.path if base.form == "folder" else None
    readings = tool_readings(Reader(files, folder, factors, error is None, case.misfit()))
    return replace(case, tools={reading.tool: reading for reading in readings})


def _changes(
    adapter: Adapter, view: BaseView, factor: Callable[[Site], Factor | None], reporter: Reporter
) -> tuple[SiteChange, ...]:
    changes, total = list[SiteChange](), len(adapter.placements)
    for change in site_changes(adapter, view, factor):
        changes.append(change)
        reporter.step("measuring the changes", len(changes), total)
    return tuple(changes)


def _importer(subject: Subject, view: BaseView) -> Callable[[AdapterFiles], bool]:
    """Return a function that asks the importer about other files of the folder."""

    def imports(files: AdapterFiles) -> bool:
        if files.library != "PEFT":
            return False
        head = HeadChoice(leave_out=subject.leave_out_head)
        try:
            read = parse_folder(files.path, dict(files.config), lambda: files.tensors)
            import_read(read, view, subject.request, head=head, dense=True)
        except (InputError, UsageError):
            return False
        return True

    return imports


def _config_of(base: Base) -> Mapping[str, Any]:
    if base.config is None or not base.config.is_file():
        return {}
    document = read_json(base.config)
    return document if isinstance(document, dict) else {}


def _options(files: AdapterFiles) -> Options | None:
    """Return the options of a LoRA of PEFT."""
    if files.kind != "LORA":
        return None
    try:
        return read_options(dict(files.config), files.path)
    except InputError:
        return None


def _factors(files: AdapterFiles, options: Options) -> dict[str, float]:
    paths = dict.fromkeys(tensor.path.replace(PREFIX, "") for tensor in files.modules)
    return {path: options.factor_at(path) for path in paths}


def _factor_at(adapter: Adapter, options: Options | None) -> Callable[[Site], Factor | None]:
    """Return a function that returns the factor of a LoRA at a site, and its formula."""
    record = adapter.training.get("imported", {}).get("modules", {})
    renaming = Renaming(record.get("drop", ""), record.get("add", ""))

    def factor(site: Site) -> Factor | None:
        path = None if site.path is None else renaming.back(site.path)
        if options is None or path is None:
            return None
        root = "√" if options.rank_stabilised else ""
        scale, rank = options.factor_at(path), options.rank_at(path)
        alpha = scale * (rank**0.5 if root else rank)
        return scale, f"{alpha:g}/{root}{rank}"

    return factor


def _head_of(adapter: Adapter | None) -> str | None:
    if adapter is None or adapter.head is None:
        return None
    task = adapter.head.task
    return "a head without a task" if task is None else f"a head for `{task.type}`"


# Folders that cannot be read.

_POINTER = b"version https://git-lfs"
_SHARDS = "adapter_model-*-of-*"
_INDEX = "adapter_model.safetensors.index.json"


def _cause_of_folder(folder: Path, error: AdapterExportError) -> Cause:
    """Name the cause of an unreadable folder."""
    cause = cause_of_error(error)
    shards = sorted(path.name for path in folder.glob(_SHARDS))
    if shards or (folder / _INDEX).is_file():
        listed = ", ".join(f"`{name}`" for name in shards) or f"only `{_INDEX}`"
        reason = "PEFT saves one file, so that no loader joins these"
        fix = "join all shards into `adapter_model.safetensors`, after fetching those that are missing"
        return replace(cause, name="missing-shard", found=f"shards: {listed}", reason=reason, fix=fix)
    if any(_starts_with(path, _POINTER) for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
        return replace(cause, name="pointer-file", reason="the repository was cloned without Git LFS")
    if (folder / "adapter_config.json").is_file() or not folder.is_dir():
        return cause
    if any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        return replace(cause, name="missing-config", reason="alpha, rank and layers are unknown without the config")
    if any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        reason = "`merge_and_unload` makes a base of model and adapter"
        return replace(cause, name="whole-model", reason=reason, fix="use the folder as a base, without an adapter")
    inside = list(folder.glob("*/adapter_config.json"))
    return replace(cause, name="several-adapters", reason="one of them is imported at a time") if inside else cause


def _starts_with(path: Path, start: bytes) -> bool:
    with open_regular(path) as file:
        return file.read(len(start)) == start
