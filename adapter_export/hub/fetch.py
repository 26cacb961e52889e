"""Take a bundle or an adapter from a hub or a registry into the cache, and from there wherever it is to go.

What arrives is foreign: only files that its format knows are taken, into a folder of its own, with limits; it has its
place in the cache when all hashes are right. Nothing half-taken stays, however the process ends.
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
from adapter_export.hub.artifact import (
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
from adapter_export.hub.huggingface import Hub, endpoint, is_offline
from adapter_export.hub.reference import (
    DatasetReference,
    HubReference,
    Reference,
    RegistryReference,
    parse_reference,
)
from adapter_export.hub.registry import Registry
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.output import Output, locked
from adapter_export.tables import Described

Proof = Callable[[Path], object]
"""Is called with the folder of what was taken, before it is used; raises an error of this package to refuse it."""

_WAIT_SECONDS = 600.0
"""Seconds to wait for another process that fetches the same artifact."""


@dataclass(frozen=True, repr=False)
class Fetched(Described):
    """A fetched artifact.

    Attributes:
        reference: the reference.
        kind: a bundle or an adapter.
        pin: the digest of the registry's manifest, or the commit of the hub.
        digest: the sha256 of `manifest.json` or `adapter_graph.json`, which has those of all other files.
        path: its folder.
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
        """The reference with its pin, which never changes its meaning."""
        return str(parse_reference(self.reference).pinned(self.pin))


class Contents(Protocol):
    """The files of a repository that are taken, and their verification."""

    @property
    def suffix(self) -> str:
        """The end of the name of their folder in the cache, which differs from that of other contents."""

    def take(self, source: Source, remote: Remote, folder: Path, order: Order) -> None:
        """Write the files to a folder, verified."""

    def verify(self, folder: Path) -> None:
        """Compare the files of a folder of the cache with their hashes; an `InputError` removes the folder."""

    def accept(self, folder: Path) -> None:
        """Refuse a folder that is whole, but not what the caller expects."""


@dataclass(frozen=True)
class Order:
    """The files to fetch, and the reporter of the call."""

    reference: Reference | DatasetReference
    contents: Contents
    reporter: Reporter


@dataclass(frozen=True)
class _Known:
    """The target of a reference when it was last resolved.

    Attributes:
        reference: itself.
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
    """Return a folder of the cache with a bundle or an adapter, whose hashes match. Treat it as read-only.

    Args:
        reference: `hf://owner/name[@revision]` or `oci://host[:port]/repository[:tag|@sha256:…]`. One with a commit or
            a digest is not asked for again; all others are asked for each time, unless `HF_HUB_OFFLINE` is set.
        expect: the sha256 that `manifest.json` of the bundle or `adapter_graph.json` of the adapter must have.
        proof: looks at the folder before it is used, such as whether it is signed.
        plain_http: speak with the registry without TLS; on this machine itself that is always done.
        reporter: receives the steps, and a note if the reference has moved since it was last fetched.

    Raises:
        UsageError: it is no reference.
        UnreachableError, NotFoundError, DeniedError, RemoteError: the hub or the registry does not give it.
        FormatError, HashError, FileError: what it gives is damaged, or not what is expected.
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
    """Do what `fetch` does, and return the kind, the digest and the pinned reference as well."""
    wanted = parse_reference(reference)
    contents = _Artifact(None if expect is None else expect.removeprefix("sha256:").lower(), proof)
    pin, folder = fetch_contents(Order(wanted, contents, reporter), partial(_source, wanted, plain_http=plain_http))
    kind = kind_of({path.name for path in folder.iterdir()}, folder)
    return Fetched(str(wanted), kind, pin, digest_of(folder, kind), folder)


def fetch_contents(order: Order, opened: Callable[[], AbstractContextManager[Source]]) -> tuple[str, Path]:
    """Return the pin of a reference, and a folder of the cache with its contents, verified; errors are of `fetch`.

    Args:
        order: what is fetched.
        opened: opens the hub or the registry, which is asked unless the cache answers.
    """
    wanted, cache = order.reference, _cache()
    known = wanted.pin or _known(cache, wanted)
    if known is not None and (wanted.pin is not None or is_offline()):
        found = _cached(cache, known, order)
        if found is not None:
            return known, found
    with opened() as source:
        try:
            remote = source.resolve()
        except UnreachableError as error:
            if known is not None and _place(cache, order, known).is_dir():
                fix = f"what it stood for last is in the cache: give `{wanted.pinned(known)}`"
                raise UnreachableError(error.what, where=error.where, found=error.found, fix=fix) from error
            raise
        if known is not None and known != remote.pin:
            order.reporter.note(f"`{wanted}` has moved: it was `{known}`, and is `{remote.pin}` now")
        found = _cached(cache, remote.pin, order)
        if found is None:
            _take(source, remote, _place(cache, order, remote.pin), order)
            found = _cached(cache, remote.pin, order)
    if found is None:
        raise FileError("was removed while it was taken", where=_place(cache, order, remote.pin), fix="run again")
    if known != remote.pin:
        with Output(_record(cache, wanted), force=True).file() as temporary:
            temporary.write_bytes(canonical_json(asdict(_Known(str(wanted), remote.pin))))
    return remote.pin, found


@contextmanager
def _source(reference: Reference, *, plain_http: bool) -> Iterator[Source]:
    if isinstance(reference, HubReference):
        yield Hub(reference)
        return
    if is_offline():
        raise UnreachableError(
            "is not in the cache, and `HF_HUB_OFFLINE` forbids the network",
            where=reference,
            fix="unset it, or pull this reference before",
        )
    with Registry(reference, plain_http=plain_http) as registry:
        yield registry


def copy_fetched(fetched: Fetched, output: Output) -> Fetched:
    """Copy what was fetched to a folder of the user's own.

    Raises:
        OutputExistsError: it is there, and `force` is not given.
        WriteError: the operating system refused a write; nothing half-written stays.
        FormatError, HashError: the copy is not what was fetched.
    """
    with output.folder() as temporary:
        shutil.copytree(fetched.path, temporary, dirs_exist_ok=True)
        check_expected(temporary, fetched.kind, fetched.digest)
        read_whole(temporary, fetched.kind)
    return Fetched(fetched.reference, fetched.kind, fetched.pin, fetched.digest, output.path)


def _cache() -> Path:
    folder = cache_folder()
    if folder is None:
        fix = f"set `{CACHE_VARIABLE}` to a folder, or leave it unset"
        raise UsageError(
            "what is taken from elsewhere needs a cache, and there is to be none", where=f"`{CACHE_VARIABLE}`", fix=fix
        )
    cache = folder / "remote"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(cache, error.strerror or error) from error
    return cache


def _place(cache: Path, order: Order, pin: str) -> Path:
    """Return the folder of some contents; that of a digest is the same for all, for it says all that is in it."""
    reference = order.reference
    if isinstance(reference, RegistryReference):
        return cache / pin.replace(":", "-")
    repository = hashlib.sha256(f"{endpoint()}/{reference.repository}".encode()).hexdigest()
    return cache / f"hf-{repository[:32]}-{pin}{order.contents.suffix}"


def _record(cache: Path, reference: Reference | DatasetReference) -> Path:
    return cache / "references" / f"{hashlib.sha256(str(reference).encode()).hexdigest()}.json"


def _known(cache: Path, reference: Reference | DatasetReference) -> str | None:
    """Return the last target of a reference; `None` if it is unknown, or its record is damaged."""
    try:
        known = record_from_json(_Known, read_json(_record(cache, reference)))
    except InputError:
        return None
    return known.pin if known.reference == str(reference) else None


def _cached(cache: Path, pin: str, order: Order) -> Path | None:
    """Return contents of the cache; `None` if they are missing, or damaged and therefore removed."""
    folder = _place(cache, order, pin)
    if not folder.is_dir():
        return None
    try:
        order.contents.verify(folder)
    except InputError as error:
        with locked(folder):
            shutil.rmtree(folder, ignore_errors=True)
        order.reporter.note(f"what the cache had was damaged, and is taken again: {error}")
        return None
    order.contents.accept(folder)
    return folder


def _take(source: Source, remote: Remote, folder: Path, order: Order) -> None:
    """Take contents to their place in the cache; if another process does so already, wait for that one."""
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
    """Write files to a folder, if they are within the limits and there is room for them.

    Args:
        source: the hub or the registry.
        files: what it has.
        folder: receives them.
        order: what is fetched.
        before: the number of files that were taken before, for the message.

    Raises:
        FormatError: there are too many files or bytes.
        WriteError: the disk has no room for them.
    """
    check_bounds(files, order.reference)
    total, free = sum(file.size for file in files), shutil.disk_usage(folder).free
    if total > free:
        raise WriteError(folder.parent, f"{total:,} bytes are needed, and {free:,} are free")
    order.reporter.step(f"taking {len(files) + before} files, {total / 1e6:,.1f} MB")
    for file in files:
        source.download(file, folder)


@dataclass(frozen=True)
class _Artifact:
    """A bundle or an adapter: its head, and the files that the head lists."""

    expect: str | None
    proof: Proof | None
    suffix: str = ""

    def take(self, source: Source, remote: Remote, folder: Path, order: Order) -> None:
        """Take the head first: it decides whether the rest is wanted."""
        where = order.reference
        kind = kind_of(remote.files, where)
        head = HEADS[kind]
        check_bounds([remote.files[head]], where)
        source.download(remote.files[head], folder)
        check_expected(folder, kind, self.expect)
        needed = needed_files(folder, kind)
        for path, size in needed.items():
            found = remote.files.get(path)
            if found is None or size not in (None, found.size):
                raise FormatError(
                    f"does not have the files that its `{head}` lists",
                    where=where,
                    found=f"no `{path}`" if found is None else f"`{path}` of {found.size:,} bytes",
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
        """Compare the digest with the expected one, and call the proof."""
        check_expected(folder, kind_of({path.name for path in folder.iterdir()}, folder), self.expect)
        if self.proof is not None:
            self.proof(folder)
