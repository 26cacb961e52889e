"""Cached records of bases: facts that can be read without opening the model.

The key is the SHA-256 of the model's files, the site map, and the code and libraries of the analysis, so a record never
belongs to another model or an older analysis. Builds and checks do not use records.
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
    """Facts of a base, available from models of each backend and from records."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, `sha256:<hex>`."""

    @property
    def inputs(self) -> tuple[InputRecord, ...]:
        """Inputs, in the order of the model."""

    @property
    def outputs(self) -> tuple[OutputRecord, ...]:
        """Outputs, in the order of the model."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Changes made to the model by capturing or opening."""

    @property
    def model_type(self) -> str | None:
        """Architecture name in transformers, if known."""

    @property
    def source(self) -> str | None:
        """Hub repository that the model was captured from, `hf://owner/name@commit`, if known."""


@dataclass(frozen=True)
class BaseRecord:
    """The facts recorded about a base.

    Attributes:
        fingerprint: SHA-256 of the weights, `sha256:<hex>`.
        inputs: the model's inputs.
        outputs: the model's outputs.
        sites: sites of adapters.
        not_placed: layers with trained weights but without sites.
        notes: changes made by capturing or opening.
        model_type: architecture name in transformers.
        source: Hub repository that the model was captured from, with its commit.
        base_head: `task` and `parameters` of the base head.
        external: SHA-256 of each external weight file of an ONNX graph, by path relative to the graph's folder.
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
    """Stored form of a record, with the SHA-256 of its canonical JSON."""

    sha256: str
    record: BaseRecord


def record_key(model: Path, site_map: Path | None) -> str | None:
    """Return the key of a model's record, the SHA-256 of everything it depends on, or `None` if caching is off.

    External weight files of an ONNX graph are not part of the key: the record lists them.
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
        record = record_from_json(_Kept, read_json(_place(key)))
        files = {name: sha256_of(model.resolve().parent / name) for name in record.record.external}
    except InputError:
        return None
    whole = record.sha256 == _sha256(asdict(record.record))
    return record.record if whole and files == record.record.external else None


def keep_record(key: str, record: BaseRecord) -> None:
    """Store a record under a key; errors of writing are ignored."""
    document = json.dumps({"sha256": _sha256(asdict(record)), "record": asdict(record)})  # keep the order of keys
    with suppress(WriteError), Output(_place(key), force=True).file() as temporary:
        temporary.write_text(document, encoding="utf-8")


def _sha256(document: object) -> str:
    return hashlib.sha256(canonical_json(document)).hexdigest()


def _place(key: str) -> Path:
    folder = cache_folder()
    assert folder is not None, "keys exist only with a cache folder"
    return folder / "bases" / f"{key}.json"


def _digest(folder: Path, pattern: str) -> str | None:
    """Return the SHA-256 of names and contents of a folder's files; `None` without readable files."""
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
