"""Download of bundles and adapters from a hub or registry, through the cache.

Downloads are untrusted: only files known to the format are written, within limits, to a separate folder, which moves
into the cache after all hashes match. No partial download remains, even if the process is killed.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Protocol

from adapter_export.errors import (
    BusyError,
    FileError,
    FormatError,
    InputError,
    OutputExistsError,
    UnreachableError,
    UsageError,
    WriteError,
    within,
)
from adapter_export.format.files import CACHE_VARIABLE, cache_folder, canonical_json
from adapter_export.format.manifest_json import CARD_FILE, REPORT_FILE, SIGNATURE_FILE
from adapter_export.format.records import Pattern, record_from_json
from adapter_export.plugins.hub.artifact import (
    HEADS,
    Kind,
    Remote,
    RemoteFile,
    Source,
    check_bounds,
    check_expected,
    digest_of,
    kind_of,
    needed_files,
    read_whole,
)
from adapter_export.plugins.hub.huggingface import Hub, endpoint, is_offline
from adapter_export.plugins.hub.reference import (
    DatasetReference,
    HubReference,
    Reference,
    RegistryReference,
    parse_reference,
)
from adapter_export.plugins.hub.registry import Registry
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.output import Output, hold_lock
from adapter_export.tables import Described, number_of

Proof = Callable[[Path], object]
"""Callback with the folder of a download before its use; raises an error of this package to reject it."""

_WAIT_SECONDS = 600.0
"""Seconds to wait for another process that fetches the same artifact."""


@dataclass(frozen=True, repr=False)
class Fetched(Described):
    """A fetched artifact.

    Attributes:
        reference: the reference.
        kind: bundle or adapter.
        pin: digest of the registry's manifest, or commit of the hub.
        digest: SHA-256 of `manifest.json` or `adapter_graph.json`, which contains those of all other files.
        path: folder of the artifact.
    """

    reference: str
    kind: Kind
    pin: str
    digest: str
    path: Path

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {"reference": self.reference, "kind": self.kind, "path": self.path, "digest": self.digest}

    @property
    def pinned(self) -> str:
        """Immutable reference with its pin."""
        return str(parse_reference(self.reference).pinned(self.pin))


class Contents(Protocol):
    """Selection and verification of the files of a repository."""

    @property
    def suffix(self) -> str:
        """Suffix of the cache folder, unique for these contents."""

    def take(self, source: Source, remote: Remote, folder: Path, order: Order) -> None:
        """Download the files to a folder, and verify them."""

    def verify(self, folder: Path) -> None:
        """Compare the files of a cache folder with their hashes; an `InputError` removes the folder."""

    def accept(self, folder: Path) -> None:
        """Reject a complete folder that the caller does not expect."""


@dataclass(frozen=True)
class Order:
    """Files to fetch, and the reporter of the call."""

    reference: Reference | DatasetReference
    contents: Contents
    reporter: Reporter


@dataclass(frozen=True)
class _Known:
    """Last known target of a reference.

    Attributes:
        reference: the reference.
        pin: its target.
    """

    reference: str
    pin: Annotated[str, Pattern("pin", "(sha256:)?[0-9a-f]{40,64}", "a digest or a commit")]


def fetch(
    reference: str,
    *,
    expect: str | None = None,
    proof: Proof | None = None,
    plain_http: bool = False,
    reporter: Reporter = SILENT,
) -> Path:
    """Return a cache folder with a verified bundle or adapter. Treat it as read-only.

    Args:
        reference: `hf://owner/name[@revision]` or `oci://host[:port]/repository[:tag|@sha256:…]`. A cached commit or
            digest is not requested again; other references are resolved each time, unless `HF_HUB_OFFLINE` is set.
        expect: required SHA-256 of the bundle's `manifest.json` or the adapter's `adapter_graph.json`.
        proof: checks the folder before its use, such as its signature.
        plain_http: connect to the registry without TLS; always used for loopback hosts.
        reporter: receives the steps, and a note if the reference has moved since the last fetch.

    Raises:
        UsageError: the reference is invalid.
        UnreachableError, NotFoundError, DeniedError, RemoteError: the hub or registry rejects the request.
        FormatError, HashError, FileError: the files are damaged, or do not match `expect`.
        WriteError: the cache cannot be written.
    """
    return fetch_all(reference, expect=expect, proof=proof, plain_http=plain_http, reporter=reporter).path


def fetch_all(
    reference: str,
    *,
    expect: str | None = None,
    proof: Proof | None = None,
    plain_http: bool = False,
    reporter: Reporter = SILENT,
) -> Fetched:
    """Like `fetch`, but return kind, digest and pinned reference as well."""
    wanted = parse_reference(reference)
    contents = _Artifact(None if expect is None else expect.removeprefix("sha256:").lower(), proof)
    pin, folder = fetch_contents(Order(wanted, contents, reporter), partial(_source, wanted, plain_http=plain_http))
    kind = kind_of({path.name for path in folder.iterdir()}, folder)
    return Fetched(str(wanted), kind, pin, digest_of(folder, kind), folder)


def fetch_contents(order: Order, opened: Callable[[], AbstractContextManager[Source]]) -> tuple[str, Path]:
    """Return the pin of a reference, and a cache folder with its verified contents; for errors see `fetch`.

    Args:
        order: the files to fetch.
        opened: opens the hub or registry, unless the cache suffices.
    """
    wanted, cache = order.reference, _cache()
    known = wanted.pin or _known(cache, wanted)
    if known is not None and (wanted.pin is not None or is_offline()):
        contents = _verify_cached(cache, known, order)
        if contents is not None:
            return known, contents
    with opened() as source:
        try:
            remote = source.resolve()
        except UnreachableError as error:
            if known is not None and _place(cache, order, known).is_dir():
                fix = f"its last known target is in the cache: pass `{wanted.pinned(known)}`"
                raise UnreachableError(error.what, where=error.where, found=error.found, fix=fix) from error
            raise
        if known is not None and known != remote.pin:
            order.reporter.warn(f"`{wanted}` has moved: it was `{known}`, and is `{remote.pin}` now")
        contents = _verify_cached(cache, remote.pin, order)
        if contents is None:
            _take(source, remote, _place(cache, order, remote.pin), order)
            contents = _verify_cached(cache, remote.pin, order)
    if contents is None:
        raise FileError("was removed during the download", where=_place(cache, order, remote.pin), fix="run again")
    if known != remote.pin:
        with Output(_record(cache, wanted), force=True).file() as temporary:
            temporary.write_bytes(canonical_json(asdict(_Known(str(wanted), remote.pin))))
    return remote.pin, contents


@contextmanager
def _source(reference: Reference, *, plain_http: bool) -> Iterator[Source]:
    if isinstance(reference, HubReference):
        yield Hub(reference)
        return
    if is_offline():
        raise UnreachableError(
            "is not in the cache, and `HF_HUB_OFFLINE` forbids the network",
            where=reference,
            fix="unset it, or pull this reference first",
        )
    with Registry(reference, plain_http=plain_http) as registry:
        yield registry


def copy_fetched(fetched: Fetched, output: Output) -> Fetched:
    """Copy a fetched artifact to a folder of the user.

    Raises:
        OutputExistsError: the folder exists, and `force` is false.
        WriteError: the operating system refused a write; no partial copy remains.
        FormatError, HashError: the copy is damaged.
    """
    with output.folder() as temporary:
        shutil.copytree(fetched.path, temporary, dirs_exist_ok=True)
        check_expected(temporary, fetched.kind, fetched.digest)
        read_whole(temporary, fetched.kind)
    return Fetched(fetched.reference, fetched.kind, fetched.pin, fetched.digest, output.path)


def _cache() -> Path:
    folder = cache_folder()
    if folder is None:
        fix = f"set `{CACHE_VARIABLE}` to a folder, or unset it"
        raise UsageError("downloads need a cache, which is disabled", where=f"`{CACHE_VARIABLE}`", fix=fix)
    cache = folder / "remote"
    try:
        # private repositories are downloaded here, too
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(cache, error.strerror or error) from error
    return cache


def _place(cache: Path, order: Order, pin: str) -> Path:
    """Return the cache folder of contents; artifacts with equal digests share it."""
    reference = order.reference
    if isinstance(reference, RegistryReference):
        return cache / pin.replace(":", "-")
    repository = hashlib.sha256(f"{endpoint()}/{reference.repository}".encode()).hexdigest()
    return cache / f"hf-{repository[:32]}-{pin}{order.contents.suffix}"


def _record(cache: Path, reference: Reference | DatasetReference) -> Path:
    return cache / "references" / f"{hashlib.sha256(str(reference).encode()).hexdigest()}.json"


def _known(cache: Path, reference: Reference | DatasetReference) -> str | None:
    """Return the last known target of a reference; `None` if it is unknown, or its record is damaged."""
    try:
        known = record_from_json(_Known, read_json(_record(cache, reference)))
    except InputError:
        return None
    return known.pin if known.reference == str(reference) else None


def _verify_cached(cache: Path, pin: str, order: Order) -> Path | None:
    """Return cached contents; `None` if they are missing. Damaged contents are removed."""
    folder = _place(cache, order, pin)
    if not folder.is_dir():
        return None
    try:
        order.contents.verify(folder)
    except InputError as error:
        with hold_lock(folder):
            shutil.rmtree(folder, ignore_errors=True)
        order.reporter.warn(f"the cached files were damaged and are downloaded again: {error}")
        return None
    order.contents.accept(folder)
    return folder


def _take(source: Source, remote: Remote, folder: Path, order: Order) -> None:
    """Download contents into the cache, or wait for another process that does."""
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            with Output(folder).folder() as temporary:
                order.contents.take(source, remote, temporary, order)
            return
        except OutputExistsError:  # another process was faster
            return
        except BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def download_all(source: Source, files: Collection[RemoteFile], folder: Path, order: Order, before: int = 0) -> None:
    """Download files to a folder, after checking limits and disk space.

    Args:
        source: the hub or registry.
        files: the files.
        folder: destination.
        order: the request.
        before: number of files downloaded before, for the message.

    Raises:
        FormatError: there are too many files or bytes.
        WriteError: there is not enough disk space.
    """
    check_bounds(files, order.reference)
    total, free = sum(file.size for file in files), shutil.disk_usage(folder).free
    if total > free:
        raise WriteError(folder.parent, f"{total:,} bytes are needed, and {free:,} are free")
    order.reporter.step(f"downloading {number_of(len(files) + before, 'file')}, {total / 1e6:,.1f} MB")
    for file in files:
        source.download(file, folder)


@dataclass(frozen=True)
class _Artifact:
    """A bundle or adapter: its head and the files listed there."""

    expect: str | None
    proof: Proof | None
    suffix: str = ""

    def take(self, source: Source, remote: Remote, folder: Path, order: Order) -> None:
        """Download the head first, then the files listed in it, unless the head is rejected."""
        where = order.reference
        kind = kind_of(remote.files, where)
        head = HEADS[kind]
        check_bounds([remote.files[head]], where)
        source.download(remote.files[head], folder)
        check_expected(folder, kind, self.expect)
        needed = needed_files(folder, kind)
        for path, size in needed.items():
            file = remote.files.get(path)
            if file is None or size not in (None, file.size):
                raise FormatError(
                    f"lacks files listed in its `{head}`",
                    where=where,
                    found=f"no `{path}`" if file is None else f"`{path}` of {file.size:,} bytes",
                    expected=f"`{path}`" if size is None else f"`{path}` of {size:,} bytes",
                    fix="push it again",
                )
        optional = [CARD_FILE, *([SIGNATURE_FILE, REPORT_FILE] if kind == "bundle" else [])]
        files = [remote.files[path] for path in (*needed, *optional) if path in remote.files]
        download_all(source, files, folder, order, before=1)
        with within(where):
            read_whole(folder, kind)
        if self.proof is not None:
            self.proof(folder)

    def verify(self, folder: Path) -> None:
        """Compare all hashes."""
        read_whole(folder, kind_of({path.name for path in folder.iterdir()}, folder))

    def accept(self, folder: Path) -> None:
        """Compare the digest with the expected one, and call `proof`."""
        check_expected(folder, kind_of({path.name for path in folder.iterdir()}, folder), self.expect)
        if self.proof is not None:
            self.proof(folder)
