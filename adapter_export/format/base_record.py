"""Records of bases: what is asked of one without running it, kept by its contents, so that it need not be opened.

A record is found by the sha256 of the model's files, of the site map, and of the code and the libraries that analysed
them. So it is never that of another model, or of an older analysis. Nothing that is built or checked reads one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from adapter_export.errors import FileError, InputError, WriteError
from adapter_export.format.files import cache_folder, canonical_json
from adapter_export.format.manifest import InputRecord, OutputRecord
from adapter_export.format.records import record_from_json
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.regular_files import sha256_of
from adapter_export.sites.site import SiteMap

_LIBRARIES = ("torch", "transformers", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "numpy")


class BaseFacts(Protocol):
    """Facts of a base that its record has as well; models in each backend have them, too."""

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of its weights, `sha256:<hex>`."""

    @property
    def inputs(self) -> tuple[InputRecord, ...]:
        """The inputs, in the order of the model."""

    @property
    def outputs(self) -> tuple[OutputRecord, ...]:
        """The outputs, in the order of the model."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Changes made to the model when it was captured or opened."""

    @property
    def model_type(self) -> str | None:
        """The name of its architecture in transformers, if it is known."""

    @property
    def source(self) -> str | None:
        """The repository of the Hub that it was captured from, `hf://owner/name@commit`, if it is known."""


@dataclass(frozen=True)
class BaseRecord:
    """The facts recorded about a base.

    Attributes:
        fingerprint: the sha256 of its weights, `sha256:<hex>`.
        inputs: what it takes.
        outputs: what it returns.
        sites: where adapters can act.
        not_placed: the layers with trained weights at which none can.
        notes: what was done to it when it was opened, or captured.
        model_type: the name of its architecture in transformers.
        source: the repository of the Hub that it was captured from, with its commit.
        base_head: of its base head, `task` and `parameters`.
        external: the sha256 of each file with weights of an ONNX graph, by its path from the graph's folder.
    """

    fingerprint: str
    inputs: tuple[InputRecord, ...]
    outputs: tuple[OutputRecord, ...]
    sites: SiteMap
    not_placed: tuple[str, ...]
    notes: tuple[str, ...]
    model_type: str | None
    source: str | None
    base_head: Mapping[str, Any] | None
    external: Mapping[str, str]


@dataclass(frozen=True)
class _Kept:
    """A record as it is written, with the sha256 of its canonical form."""

    sha256: str
    record: BaseRecord


def record_key(model: Path, site_map: Path | None) -> str | None:
    """Return the key of a model's record, the sha256 of all that it depends on, or `None` if caching is off.

    Of an ONNX graph, the files with its weights are not in it: a record names them.
    """
    code = _digest(Path(__file__).parent.parent, "*.py")
    if cache_folder() is None or code is None:
        return None
    parts = {
        "model": _digest(model, "*") if model.is_dir() else sha256_of(model),
        "site map": None if site_map is None else sha256_of(site_map),
        "code": code,
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "python": sys.version,
    }
    return _sha256(parts)


def find_record(key: str, model: Path) -> BaseRecord | None:
    """Return the record stored under a key; `None` if it is missing or damaged, or if external weights have changed."""
    try:
        kept = record_from_json(_Kept, read_json(_place(key)))
        files = {name: sha256_of(model.resolve().parent / name) for name in kept.record.external}
    except InputError:
        return None
    whole = kept.sha256 == _sha256(asdict(kept.record))
    return kept.record if whole and files == kept.record.external else None


def keep_record(key: str, record: BaseRecord) -> None:
    """Write a record under that name; where the folder cannot be written, there is none."""
    document = json.dumps({"sha256": _sha256(asdict(record)), "record": asdict(record)})  # keys stay in their order
    with suppress(WriteError), Output(_place(key), force=True).file() as temporary:
        temporary.write_text(document, encoding="utf-8")


def _sha256(document: object) -> str:
    return hashlib.sha256(canonical_json(document)).hexdigest()


def _place(key: str) -> Path:
    folder = cache_folder()
    assert folder is not None, "a key is made where there is a folder"
    return folder / "bases" / f"{key}.json"


def _digest(folder: Path, pattern: str) -> str | None:
    """Return the sha256 over the names and contents of a folder's files; `None` without readable files."""
    try:
        lines = [f"{name} {sha256_of(path)}\n" for name, path in sorted(_files(folder, pattern))]
    except FileError:
        return None
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None


def _files(folder: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob(pattern):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
