"""Artifacts: bundles and adapter folders. The head file of each contains the hashes of all other files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from adapter_export.errors import FormatError, HashError, NoArtifactError, within
from adapter_export.format.adapter_files import GRAPH_FILE, WEIGHTS_FILE, read_adapter
from adapter_export.format.manifest_json import MANIFEST_FILE, read_manifest, verify_files
from adapter_export.format.records import Count, RelativePath, Sha256, record_from_json
from adapter_export.safe_io.documents import MOST_JSON_BYTES
from adapter_export.safe_io.regular_files import MOST_BYTES, sha256_of
from adapter_export.tables import number_of
from adapter_export.words import quoted, visible

Kind = Literal["bundle", "adapter"]

HEADS: Mapping[Kind, str] = {"bundle": MANIFEST_FILE, "adapter": GRAPH_FILE}

MOST_FILES = 10_000
MOST_TOTAL_BYTES = 256 * 2**30
"""Maximum number of remote files, and their maximum total size."""


@dataclass(frozen=True)
class RemoteFile:
    """A remote file.

    Attributes:
        path: path in its folder, with `/`.
        size: size in bytes.
        digest: SHA-256, if known in advance.
    """

    path: RelativePath
    size: Count
    digest: Sha256 | None = None


@dataclass(frozen=True)
class Remote:
    """The current target of a reference.

    Attributes:
        pin: immutable name: the digest of an OCI manifest, or a commit.
        files: files by path.
    """

    pin: str
    files: Mapping[str, RemoteFile]


class Source(Protocol):
    """The source of an artifact."""

    def resolve(self) -> Remote:
        """Resolve the reference to its current target."""

    def download(self, file: RemoteFile, folder: Path) -> None:
        """Write one file to its path in a folder, up to its announced size."""


def files_by_path(rows: Iterable[Mapping[str, object]], where: object) -> Mapping[str, RemoteFile]:
    """Parse a list of files, objects with `path`, `size` and `digest`.

    Raises:
        FormatError: a path leaves its folder, or paths differ only in case.
    """
    files: dict[str, RemoteFile] = {}
    with within(where):
        for index, row in enumerate(rows):
            file = record_from_json(RemoteFile, row, f"$.files[{index}]")
            if files.setdefault(file.path.casefold(), file) is not file:
                raise FormatError("lists a file twice", found=f"`{visible(file.path)}`")
    return {file.path: file for file in files.values()}


def kind_of(names: Collection[str], where: object) -> Kind:
    """Return the kind of artifact of a folder with these files.

    Raises:
        NoArtifactError: the folder is neither a bundle nor an adapter.
    """
    for kind, head in HEADS.items():
        if head in names:
            return kind
    raise NoArtifactError(
        "is neither a bundle nor an adapter",
        where=where,
        found=quoted(sorted(names)[:5]) or "no files",
        expected=" or ".join(f"`{head}`" for head in HEADS.values()),
        fix="pass an output of `build` or `train`, or a repository of `push`",
    )


def digest_of(folder: Path, kind: Kind) -> str:
    """Return the SHA-256 of an artifact's head, which covers all its files."""
    return sha256_of(folder / HEADS[kind])


def check_expected(folder: Path, kind: Kind, expect: str | None) -> str:
    """Return the digest of an artifact; HashError if it differs from the expected one."""
    actual = digest_of(folder, kind)
    if expect is not None and actual != expect:
        fix = "use the approved version, or approve this one"
        raise HashError(
            folder / HEADS[kind], "does not match the expected digest", found=actual, expected=expect, fix=fix
        )
    return actual


def read_whole(folder: Path, kind: Kind) -> None:
    """Compare all files of an artifact with their hashes, and reject links out of its folder.

    Raises:
        FileError, FormatError, HashError, GraphError, AdapterError: the artifact is damaged or invalid.
    """
    if kind == "bundle":
        verify_files(read_manifest(folder), folder)
    else:
        read_adapter(folder)


def needed_files(folder: Path, kind: Kind) -> Mapping[str, int | None]:
    """Return the required files of an artifact besides its head, with sizes in bytes if the head contains them."""
    if kind == "adapter":
        return {WEIGHTS_FILE: None}
    return {file.path: file.bytes for file in read_manifest(folder).files}


def check_bounds(files: Collection[RemoteFile], where: object) -> None:
    """Check the limits of files before a download.

    Raises:
        FormatError: too many files or bytes.
    """
    heads = set(HEADS.values())
    total = sum(file.size for file in files)
    large = next((file for file in files if file.size > (MOST_JSON_BYTES if file.path in heads else MOST_BYTES)), None)
    if len(files) > MOST_FILES or total > MOST_TOTAL_BYTES or large is not None:
        totals = f"{number_of(len(files), 'file')} of {total:,} bytes"
        raise FormatError(
            "is too large",
            where=where,
            found=totals if large is None else f"`{large.path}` of {large.size:,} bytes",
            expected=f"at most {MOST_FILES:,} files, {MOST_BYTES:,} bytes each and {MOST_TOTAL_BYTES:,} together",
            fix="check that this is the intended repository",
        )
