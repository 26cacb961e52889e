"""Addresses of what commands read: local paths, ids of the Hub, and references; and where it is on this machine.

A local path imports none of the libraries that talk to hubs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapter_export.errors import FileError, MissingExtraError, NoArtifactError, RemoteError, UsageError
from adapter_export.hub.reference import HubReference, parse_dataset, parse_reference
from adapter_export.reporting import SILENT, Reporter

Contents = Literal["model", "adapter", "tokenizer", "artifact", "table", "any"]
"""A model of transformers, an adapter of another library, a tokenizer, a bundle or an adapter of this package, a table.

`any` is a bundle, an adapter of this package, or else a model.
"""

_BY_ID = ("model", "adapter", "tokenizer", "any")
"""Contents that `owner/name` names, too; all others need the scheme."""

_ID = re.compile(r"(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)
_MODELS = ".pt .pt2 .pth .bin .ckpt .pkl .onnx .onnx_data .ort .gguf .tflite .h5 .keras .msgpack .safetensors .npz .npy"
_OTHERS = ".json .jsonl .ndjson .csv .tsv .tab .txt .parquet .pq .toml .yaml .yml .zip .gz .tar .xz .zst .py .ipynb"
_SUFFIXES = frozenset(f"{_MODELS} {_OTHERS}".split())
"""Suffixes of files, with which no repository of a model is named."""

_LOST_SLASH = re.compile(r"(hf|oci):/(?!/)")


@dataclass(frozen=True)
class Located:
    """The files on this machine that an address names.

    Attributes:
        asked: the address, as the user wrote it.
        path: the file or folder.
        source: the reference with its commit or digest, which never changes its meaning; `None` for a local path.
    """

    asked: str
    path: Path
    source: str | None = None


def is_remote(address: str | Path) -> bool:
    """Return whether an address has a scheme, such as `hf://owner/name`."""
    return "://" in as_written(address)


def as_written(address: str | Path) -> str:
    """Return an address as its user wrote it: a `Path` of `hf://owner/name` has lost a slash."""
    return _LOST_SLASH.sub(r"\1://", os.fspath(address), count=1)


def locate(address: str | Path, contents: Contents, reporter: Reporter = SILENT) -> Located:
    """Return where the contents of an address are on this machine; those of a hub or a registry are fetched first.

    A path that exists is that path. `hf://owner/name[@revision]`, `oci://…` and, for tables, `hf://datasets/…` are
    references. `owner/name[@revision]` is an id of the Hub if no folder `owner` is here and the name has no suffix of a
    file. Anything else is a path, which its reader says is missing.

    Args:
        address: what the user gave.
        contents: what is read there.
        reporter: receives the steps of a download.

    Raises:
        FileError: it looks like an id of the Hub, but is a path that is missing.
        UsageError: it is a reference to something else, or none.
        MissingExtraError: the libraries of the extra `hub` or `data` are not installed.
        RemoteError: the hub or the registry does not give it.
        InputError: it has no such contents, or they are damaged.
    """
    text = as_written(address)
    if "://" in text:
        return _fetched(text, text, contents, reporter)
    found = None if contents not in _BY_ID or os.path.lexists(text) else _ID.fullmatch(text)
    if found is None:
        return Located(text, Path(address))
    _check_is_no_path(text, Path(found["owner"]), found["name"])
    try:
        return _fetched(text, f"hf://{text}", contents, reporter)
    except RemoteError as error:
        here = f"{error.what}; on this machine, there is no path `{text}`"
        raise type(error)(here, where=error.where, found=error.found, expected=error.expected, fix=error.fix) from error


def _check_is_no_path(text: str, owner: Path, name: str) -> None:
    suffix = Path(name).suffix.lower()
    if owner.is_dir():
        found = f"a folder `{owner}` without `{name}`"
    elif suffix in _SUFFIXES:
        found = f"the suffix `{suffix}` of a file"
    else:
        return
    fix = f"check the path for typos; a repository of the Hub with this name is `hf://{text}`"
    raise FileError("does not exist", where=text, found=found, fix=fix)


def _fetched(asked: str, reference: str, contents: Contents, reporter: Reporter) -> Located:
    if contents == "table":
        dataset = parse_dataset(reference)
        with _required("data", "a dataset of the Hub"):
            from adapter_export.hub.dataset_rows import fetch_table  # noqa: PLC0415 - an extra
        pin, path = fetch_table(dataset, reporter)
        return Located(asked, path, str(dataset.pinned(pin)))
    require_hub()
    from adapter_export.hub.fetch import fetch_all  # noqa: PLC0415 - an extra

    if contents == "artifact" or contents == "any":
        try:
            fetched = fetch_all(reference, reporter=reporter)
        except NoArtifactError:
            if contents == "artifact":
                raise
            return _fetched(asked, reference, "model", reporter)
        return Located(asked, fetched.path, fetched.pinned)
    repository = parse_reference(reference)
    if not isinstance(repository, HubReference):
        fix = "give an id of the Hub, or a path"
        raise UsageError("is in a registry, which has bundles and adapters of this package", where=repository, fix=fix)
    from adapter_export.hub.repository_files import fetch_files  # noqa: PLC0415 - an extra

    pin, path = fetch_files(repository, contents, reporter)
    return Located(asked, path, str(repository.pinned(pin)))


def require_hub() -> None:
    """Import the libraries that talk to hubs and registries.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    with _required("hub", "a hub or a registry"):
        import httpx  # noqa: F401, PLC0415 - an extra
        import huggingface_hub  # noqa: F401, PLC0415 - an extra


@contextmanager
def _required(extra: str, needed_for: str) -> Iterator[None]:
    """Raise a `MissingExtraError` for a library that the block cannot import."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), extra=extra, needed_for=needed_for) from error
