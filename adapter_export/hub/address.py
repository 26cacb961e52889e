"""Addresses of inputs: local paths, Hub ids and references, and their local files.

Local paths are resolved without importing the libraries of hubs.
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
"""A transformers model, an adapter of another library, a tokenizer, an artifact of this package, or a table.

`any` is a bundle, an adapter of this package, or else a model.

"""

_BY_ID = ("model", "adapter", "tokenizer", "any")
"""Contents that may be addressed as `owner/name`; others need the scheme."""

_ID = re.compile(r"(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)
_MODELS = ".pt .pt2 .pth .bin .ckpt .pkl .onnx .onnx_data .ort .gguf .tflite .h5 .keras .msgpack .safetensors .npz .npy"
_OTHERS = ".json .jsonl .ndjson .csv .tsv .tab .txt .parquet .pq .toml .yaml .yml .zip .gz .tar .xz .zst .py .ipynb"
_SUFFIXES = frozenset(f"{_MODELS} {_OTHERS}".split())
"""File suffixes, which names of model repositories do not have."""

_LOST_SLASH = re.compile(r"(hf|oci):/(?!/)")


@dataclass(frozen=True)
class Located:
    """Local files of an address.

    Attributes:
        asked: the address as passed.
        path: the local file or folder.
        source: the immutable reference, with commit or digest; `None` for a local path.
    """

    asked: str
    path: Path
    source: str | None = None


def is_remote(address: str | Path) -> bool:
    """Return whether an address has a scheme, such as `hf://owner/name`."""
    return "://" in as_written(address)


def as_written(address: str | Path) -> str:
    """Return the original text of an address: a `Path` of `hf://owner/name` has lost a slash."""
    return _LOST_SLASH.sub(r"\1://", os.fspath(address), count=1)


def locate(address: str | Path, contents: Contents, reporter: Reporter = SILENT) -> Located:
    """Return the local files of an address, fetched from the hub or registry if needed.

    An existing path is used directly. `hf://owner/name[@revision]`, `oci://…` and, for tables, `hf://datasets/…` are
    references. `owner/name[@revision]` is a Hub id if there is no local folder `owner` and the name has no file suffix.
    Other texts are paths, reported as missing by their reader.

    Args:
        address: the address from the user.
        contents: the expected contents.
        reporter: receives the steps of a download.

    Raises:
        FileError: the address looks like a Hub id, but is a missing path.
        UsageError: the reference is invalid, or has other contents.
        MissingExtraError: the libraries of the extra `hub` or `data` are not installed.
        RemoteError: the hub or registry rejects the request.
        InputError: the contents are missing or damaged.
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
        here = error.what + f"; there is no local path `{text}`"
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
        fix = "pass a Hub id or a path"
        raise UsageError("registries contain only bundles and adapters of this package", where=repository, fix=fix)
    from adapter_export.hub.repository_files import fetch_files  # noqa: PLC0415 - an extra

    pin, path = fetch_files(repository, contents, reporter)
    return Located(asked, path, str(repository.pinned(pin)))


def require_hub() -> None:
    """Import the libraries for hubs and registries.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    with _required("hub", "a hub or a registry"):
        import httpx2  # noqa: F401, PLC0415 - an extra
        import huggingface_hub  # noqa: F401, PLC0415 - an extra


@contextmanager
def _required(extra: str, needed_for: str) -> Iterator[None]:
    """Raise MissingExtraError if the block cannot import a library."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), extra=extra, needed_for=needed_for) from error
