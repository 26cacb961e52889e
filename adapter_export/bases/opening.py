"""Open a base of any form, or use the record of an earlier opening."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from adapter_export.address import Address, PathLike, locate
from adapter_export.bases.base import DEFAULTS, Base, Kept, OpenOptions
from adapter_export.bases.detect import Form, form_of
from adapter_export.bases.forms import ArchiveBase, FolderBase, GenaiBase, OnnxFileBase
from adapter_export.errors import UsageError
from adapter_export.reporting import SILENT, Reporter
from adapter_export.words import argument


def open_base(model: Address | Base, *, site_map: PathLike | None = None, trust_pickle: bool = False) -> Base:
    """Open a base.

    Args:
        model: a torch archive, a Hugging Face folder, an ONNX file or a folder of onnxruntime-genai, detected by its
            contents; or a model of the Hub, `owner/name[@revision]`. A `Base` is returned unchanged.
        site_map: a file with sites that override or complete the detected ones.
        trust_pickle: load an archive that could run code; only for files that you made yourself.

    Raises:
        FileError: the path does not exist.
        RemoteError: the Hub does not provide it.
        BaseModelError: it is not a base, or is damaged.
        NoSitesError: an ONNX base in which no place for an adapter was found.
        MissingExtraError: a library that its form needs is not installed.
    """
    base = unopened(model, OpenOptions(site_map, trust_pickle))
    if base is not model:
        _ = base.model
    return base


def unopened(model: Address | Base, options: OpenOptions = DEFAULTS, reporter: Reporter = SILENT) -> Base:
    """Return a base that is opened when a property first needs its model; arguments as for `open_base`.

    A model of the Hub is fetched immediately; `reporter` receives the step.
    """
    if isinstance(model, Base):
        if options.site_map is not None:
            raise UsageError(argument("site_map") + " does not apply to an open base", fix="pass it to `open_base`")
        return model
    _ = options.given  # fail on an unreadable site map before the model is opened
    found = locate(model, "model", reporter)
    return _CLASSES[form_of(found.path)](found.path, options, fetched=found.source)


_CLASSES: Mapping[Form, type[ArchiveBase | OnnxFileBase]] = {
    "archive": ArchiveBase,
    "folder": FolderBase,
    "onnx": OnnxFileBase,
    "genai": GenaiBase,
}


def recorded_base(model: Address | Base, options: OpenOptions = DEFAULTS, reporter: Reporter = SILENT) -> Base:
    """Return a base that answers from the record of an earlier opening; the first call opens it and writes the record.

    Arguments and errors as for `open_base`. An archive that could run code has no record.
    """
    base = unopened(model, options, reporter)
    if base is model:
        return base
    key = None if options.trust_pickle else base.record_key()
    if key is None or base.path is None:
        _ = base.model
        return base
    from adapter_export.bases.base_record import find_record

    record = find_record(key, base.path)
    if record is not None:
        return replace(base, kept=Kept(key, record))
    _ = base.model
    base.write_record(key)
    return base


def base_for(
    model: Address | Base, options: OpenOptions, reporter: Reporter = SILENT, *, recorded: bool = False
) -> Base:
    """Open a base for a call, and report changes to its model as steps.

    Args:
        model: as for `open_base`.
        options: options for opening it.
        reporter: receives the steps.
        recorded: whether to use a record, as `recorded_base` does.
    """
    if recorded:
        base = recorded_base(model, options, reporter)
    else:
        base = unopened(model, options, reporter)
        if base is not model:
            _ = base.model
    if base is not model and base.form != "archive":  # `capture` has already reported those of an archive
        for note in base.notes:
            reporter.step(f"{Path(str(model)).name}: " + note)
    return base
