"""Addresses of inputs: local paths, ids of the Hub and references, and their local files.

Plug-ins read references, each those with its schemes; local paths are resolved without them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from adapter_export.errors import FileError, RemoteError, UsageError
from adapter_export.option import REMOTE
from adapter_export.plugin import part_modules
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

PathLike = Path | str

Address = Annotated[PathLike, REMOTE]
"""A path, an id of the Hub or a reference, which `locate` finds."""

_LOST_SLASH = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)")
"""A scheme of two letters or more, which no drive of Windows has, in an address that was a `Path`."""


@dataclass(frozen=True)
class Located:
    """Local files of an address.

    Attributes:
        address: the address as passed.
        path: the local file or folder.
        source: the immutable reference, with commit or digest; `None` for a local path.
    """

    address: str
    path: Path
    source: str | None = None


FetchLocated = Callable[[str, str, Contents, Reporter], Located]
"""Fetches a reference: the address as passed, the reference, the expected contents, and who receives the steps.

A module that a plug-in adds to `addresses` defines one as `fetch_located`, and its schemes as `SCHEMES`.
"""


def is_remote(address: str | Path) -> bool:
    """Return whether an address has a scheme, such as `hf://owner/name`."""
    return "://" in as_written(address)


def as_written(address: str | Path) -> str:
    """Return the original text of an address: a `Path` of `hf://owner/name` has lost a slash."""
    return _LOST_SLASH.sub(r"\1://", os.fspath(address), count=1)


def repository_in(reference: str) -> str:
    """Return the repository that a reference names, such as `owner/name`."""
    return reference.partition("://")[2].partition("@")[0]


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
        return _fetch(text, text, contents, reporter)
    parsed = None if contents not in _BY_ID or os.path.lexists(text) else _ID.fullmatch(text)
    if parsed is None:
        return Located(text, Path(address))
    _check_is_no_path(text, Path(parsed["owner"]), parsed["name"])
    try:
        return _fetch(text, f"hf://{text}", contents, reporter)
    except RemoteError as error:
        here = error.what + f"; there is no local path `{text}`"
        raise type(error)(here, where=error.where, found=error.found, expected=error.expected, fix=error.fix) from error


def _check_is_no_path(text: str, owner: Path, name: str) -> None:
    suffix = Path(name).suffix.lower()
    if owner.is_dir():
        actual = f"a folder `{owner}` without `{name}`"
    elif suffix in _SUFFIXES:
        actual = f"the suffix `{suffix}` of a file"
    else:
        return
    fix = f"check the path for typos; a repository of the Hub with this name is `hf://{text}`"
    raise FileError("does not exist", where=text, found=actual, fix=fix)


def _fetch(address: str, reference: str, contents: Contents, reporter: Reporter) -> Located:
    """Return the local files of a reference, fetched by the plug-in that reads addresses with its scheme."""
    scheme = reference.partition("://")[0]
    for module in part_modules("addresses"):
        if scheme in module.SCHEMES:
            fetch_located: FetchLocated = module.fetch_located
            return fetch_located(address, reference, contents, reporter)
    expected = "a local path, or an address such as `hf://owner/name`"
    raise UsageError("has a scheme that no plug-in reads", where=address, found=f"`{scheme}://`", expected=expected)
