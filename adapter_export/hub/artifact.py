"""Artifacts: bundles and folders of adapters. Each has one file with the hashes of all others: its head."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from adapter_export.errors import FormatError, HashError, NoArtifactError, quoted, visible, within
from adapter_export.format.adapter_files import GRAPH_FILE, WEIGHTS_FILE, read_adapter
from adapter_export.format.manifest_json import MANIFEST_FILE, read_manifest, verify_files
from adapter_export.format.records import Count, RelativePath, Sha256, record_from_json
from adapter_export.safe_io.documents import MOST_JSON_BYTES
from adapter_export.safe_io.regular_files import MOST_BYTES, sha256_of

Kind = Literal["bundle", "adapter"]

HEADS: Mapping[Kind, str] = {"bundle": MANIFEST_FILE, "adapter": GRAPH_FILE}

MOST_FILES = 10_000
MOST_TOTAL_BYTES = 256 * 2**30
"""The most files, and bytes of them together, that are taken from elsewhere."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that lies elsewhere.

    Attributes:
        path: in its folder, with `/`.
        size: in bytes.
        digest: the sha256 of its bytes, where it is known before.
    """

    path: RelativePath
    size: Count
    digest: Sha256 | None = None


@dataclass(frozen=True)
class Remote:
    """The current target of a reference.

    Attributes:
        pin: an immutable name: the digest of an OCI manifest, or a commit.
        files: by path.
    """

    pin: str
    files: Mapping[str, RemoteFile]


class Source(Protocol):
    """The source of an artifact."""

    def resolve(self) -> Remote:
        """Resolve the reference to its current target."""

    def download(self, file: RemoteFile, folder: Path) -> None:
        """Write one file to its path in a folder; at most as many bytes as it is said to have."""


def files_by_path(rows: Iterable[Mapping[str, object]], where: object) -> Mapping[str, RemoteFile]:
    """Return the files that somebody lists, as objects with `path`, `size` and `digest`.

    Raises:
        FormatError: a path leads out of its folder, or two are the same but for case.
    """
    files: dict[str, RemoteFile] = {}
    with within(where):
        for index, row in enumerate(rows):
            file = record_from_json(RemoteFile, row, f"$.files[{index}]")
            if files.setdefault(file.path.casefold(), file) is not file:
                raise FormatError("lists a file twice", found=f"`{visible(file.path)}`")
    return {file.path: file for file in files.values()}


def kind_of(names: Collection[str], where: object) -> Kind:
    """Return what a folder with these files is.

    Raises:
        NoArtifactError: neither a bundle nor an adapter.
    """
    for kind, head in HEADS.items():
        if head in names:
            return kind
    raise NoArtifactError(
        "is neither a bundle nor an adapter",
        where=where,
        found=quoted(sorted(names)[:5]) or "no files",
        expected=" or ".join(f"`{head}`" for head in HEADS.values()),
        fix="give what `build` or `train` made, or `push` sent",
    )


def digest_of(folder: Path, kind: Kind) -> str:
    """Return the sha256 of the head of an artifact, and so of all that it is."""
    return sha256_of(folder / HEADS[kind])


def check_expected(folder: Path, kind: Kind, expect: str | None) -> str:
    """Return the digest of an artifact; another one than was expected is a `HashError`."""
    found = digest_of(folder, kind)
    if expect is not None and found != expect:
        fix = "take the one that was approved, or approve this one"
        raise HashError(folder / HEADS[kind], "is not the one that is expected", found=found, expected=expect, fix=fix)
    return found


def read_whole(folder: Path, kind: Kind) -> None:
    """Compare all files of an artifact with their hashes; nothing in it may lead out of its folder.

    Raises:
        FileError, FormatError, HashError, GraphError, AdapterError: it is damaged, or not what it should be.
    """
    if kind == "bundle":
        verify_files(read_manifest(folder), folder)
    else:
        read_adapter(folder)


def needed_files(folder: Path, kind: Kind) -> Mapping[str, int | None]:
    """Return what an artifact cannot be without, beside its head, and the sizes in bytes where the head says them."""
    if kind == "adapter":
        return {WEIGHTS_FILE: None}
    return {file.path: file.bytes for file in read_manifest(folder).files}


def check_bounds(files: Collection[RemoteFile], where: object) -> None:
    """Refuse what no artifact needs, before it is taken.

    Raises:
        FormatError: too many files or bytes.
    """
    heads = set(HEADS.values())
    total = sum(file.size for file in files)
    large = next((one for one in files if one.size > (MOST_JSON_BYTES if one.path in heads else MOST_BYTES)), None)
    if len(files) > MOST_FILES or total > MOST_TOTAL_BYTES or large is not None:
        found = f"{len(files):,} files of {total:,} bytes"
        raise FormatError(
            "is too large",
            where=where,
            found=found if large is None else f"`{large.path}` of {large.size:,} bytes",
            expected=f"at most {MOST_FILES:,} files, {MOST_BYTES:,} bytes each and {MOST_TOTAL_BYTES:,} together",
            fix="check that it is the one that you mean",
        )
