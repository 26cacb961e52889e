"""The Hugging Face Hub, accessed with huggingface_hub: its tokens, `HF_ENDPOINT`, cache and offline mode apply."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from adapter_export.errors import (
    DeniedError,
    FormatError,
    HashError,
    NotFoundError,
    RemoteError,
    UnreachableError,
    UsageError,
)
from adapter_export.format.manifest_json import UNLISTED
from adapter_export.plugins.hub.artifact import HEADS, Remote, RemoteFile, files_by_path, needed_files
from adapter_export.plugins.hub.reference import DatasetReference, HubReference
from adapter_export.safe_io.parsers import reason
from adapter_export.safe_io.regular_files import copy_hashed
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.version import __version__
from adapter_export.words import visible

_TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[0]
"""Base class of HTTP client errors, which depends on the library's version."""

_UNAUTHORIZED, _FORBIDDEN, _TOO_MANY, _SERVER_ERROR = 401, 403, 429, 500


def endpoint() -> str:
    """Return the address of the hub."""
    return HfApi().endpoint


def is_offline() -> bool:
    """Return whether `HF_HUB_OFFLINE` forbids the network."""
    return is_offline_mode()


class Hub:
    """A repository of the hub.

    Args:
        reference: a revision of the repository.
    """

    def __init__(self, reference: HubReference | DatasetReference) -> None:
        self.reference = reference
        self._type = "dataset" if isinstance(reference, DatasetReference) else "model"
        self._api = HfApi(library_name="adapter-export", library_version=__version__)
        self._snapshot: Path | None = None
        self._commit: str | None = None

    def resolve(self) -> Remote:
        """Resolve the reference to a commit and its files; when offline, from the library's cache.

        Raises:
            RemoteError: the hub does not respond, or rejects the request.
            FormatError: a file name leaves its folder.
        """
        name, revision = self.reference.repository, self.reference.revision
        with self._translate_errors():
            if is_offline():
                self._snapshot = self._cached_snapshot()
                self._commit = self._snapshot.name
                rows = [
                    {"path": path.relative_to(self._snapshot).as_posix(), "size": path.stat().st_size, "digest": None}
                    for path in self._snapshot.rglob("*")
                    if path.is_file()
                ]
            else:
                info: Any = self._api.repo_info(name, revision=revision, repo_type=self._type, files_metadata=True)
                self._commit = str(info.sha)
                rows = [
                    {
                        "path": sibling.rfilename,
                        "size": sibling.size or 0,
                        "digest": sibling.lfs.sha256 if sibling.lfs else None,
                    }
                    for sibling in info.siblings or ()
                ]
        if not re.fullmatch(r"[0-9a-f]{40,64}", self._commit):
            raise RemoteError("the hub returned no commit", where=self.reference, found=visible(self._commit))
        return Remote(self._commit, files_by_path(rows, self.reference))

    def download(self, file: RemoteFile, folder: Path) -> None:
        """Write one file to its path in a folder.

        Raises:
            RemoteError: the hub rejects the request.
            FormatError: the size differs from the listing.
            HashError: the contents differ from the listed hash, if any.
        """
        place = folder / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        if self._snapshot is not None:
            copy_hashed(self._snapshot / file.path, place, file.size)
            return
        where = f"{self.reference}, `{file.path}`"
        with TemporaryDirectory(dir=folder, prefix=".") as beside:  # the library stores metadata there
            with self._translate_errors():
                path = self._api.hf_hub_download(
                    self.reference.repository,
                    file.path,
                    repo_type=self._type,
                    revision=self._commit,
                    local_dir=beside,
                )
            got = Path(beside, "got")
            # one byte more than listed, which shows that a file is longer
            actual, size = copy_hashed(Path(path), got, file.size + 1), got.stat().st_size
            if size != file.size:
                expected = f"{file.size:,} bytes"
                raise FormatError(
                    "the size of the download differs from the listing",
                    where=where,
                    found=f"{size:,} bytes",
                    expected=expected,
                )
            if file.digest is not None and actual != file.digest:
                raise HashError(
                    where, "the download does not match the listed hash", found=actual, expected=file.digest
                )
            got.replace(place)

    def _cached_snapshot(self) -> Path:
        """Return the cached snapshot of the reference; raises errors of the library."""
        name, revision = self.reference.repository, self.reference.revision
        return Path(snapshot_download(name, repo_type=self._type, revision=revision, local_files_only=True))

    def push(self, files: Mapping[str, Path], *, private: bool, message: str) -> str:
        """Commit the files of an artifact, creating the repository if needed, and return the commit id.

        Files of a previous bundle or adapter that this one lacks are deleted.

        Raises:
            RemoteError: the hub does not respond, or rejects the request.
        """
        name, revision = self.reference.repository, self.reference.revision
        with self._translate_errors():
            self._api.create_repo(name, private=private or None, exist_ok=True)
            if revision is not None:
                self._api.create_branch(name, branch=revision, exist_ok=True)
            gone = self._find_previous_files() - files.keys()
            adds = [CommitOperationAdd(path, file) for path, file in sorted(files.items())]
            deletes = [CommitOperationDelete(path) for path in sorted(gone)]
            done = self._api.create_commit(name, [*adds, *deletes], commit_message=message, revision=revision)
        return str(done.oid)

    def current(self) -> str | None:
        """Return the current commit of the reference, or `None`."""
        try:
            with self._translate_errors():
                info = self._api.repo_info(self.reference.repository, revision=self.reference.revision)
                return str(info.sha)
        except NotFoundError:
            return None

    def _find_previous_files(self) -> set[str]:
        """Return the files of the bundle or adapter in the repository; other files are kept."""
        names: set[str] = set()
        with suppress(FormatError, NotFoundError), temporary_folder() as folder:
            remote = self.resolve()
            for kind, head in HEADS.items():
                if head in remote.files:
                    names |= {head, *(UNLISTED if kind == "bundle" else ())}
                    self.download(remote.files[head], folder)
                    names |= needed_files(folder, kind).keys()
        return names & remote.files.keys()

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Convert errors of the library, and suppress its progress bars."""
        where, bars = self.reference, not are_progress_bars_disabled()
        disable_progress_bars()
        try:
            yield
        except OfflineModeIsEnabled as error:
            fix = "unset it, or pull this reference first"
            raise UnreachableError("`HF_HUB_OFFLINE` forbids the network", where=where, fix=fix) from error
        except LocalEntryNotFoundError as error:
            what = (
                "is not in the cache, and `HF_HUB_OFFLINE` forbids the network"
                if is_offline()
                else "the connection broke off"
            )
            fix = "unset it, or pull this reference first" if is_offline() else "run again"
            raise UnreachableError(what, where=where, found=_message_of(error), fix=fix) from error
        except GatedRepoError as error:
            page = f"{endpoint()}/{'datasets/' if self._type == 'dataset' else ''}{where.repository}"
            fix = f"ask for access at {page}, then {_TOKEN}"
            raise DeniedError(
                "is gated: its owner grants access", where=where, found=_message_of(error), fix=fix
            ) from error
        except RepositoryNotFoundError as error:
            fix = f"check its name; if it is private, {_TOKEN}"
            what = "the repository does not exist, or is private"
            raise NotFoundError(what, where=where, found=_message_of(error), fix=fix) from error
        except RevisionNotFoundError as error:
            fix = "pass an existing branch, tag or commit, or omit the revision"
            what = "the repository has no such revision"
            raise NotFoundError(what, where=where, found=_message_of(error), fix=fix) from error
        except EntryNotFoundError as error:
            fix = "run again: the repository has changed"
            raise NotFoundError(
                "the repository has no such file", where=where, found=_message_of(error), fix=fix
            ) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (_UNAUTHORIZED, _FORBIDDEN):
                raise DeniedError("the hub denies access", where=where, found=_message_of(error), fix=_TOKEN) from error
            if status == _TOO_MANY or status >= _SERVER_ERROR:
                fix = "run again later"
                raise UnreachableError(
                    "the hub is temporarily unavailable", where=where, found=_message_of(error), fix=fix
                ) from error
            raise RemoteError("the hub rejects the request", where=where, found=_message_of(error)) from error
        except HFValidationError as error:
            raise UsageError("is not a valid repository name", where=where, found=_message_of(error)) from error
        except (_TRANSPORT, ConnectionError, TimeoutError) as error:
            fix = f"check the network and `HF_ENDPOINT`{self._offline_way()}"
            raise UnreachableError(
                "the hub does not respond", where=where, found=_message_of(error), fix=fix
            ) from error
        except RuntimeError as error:  # from a thread of the library, with the original error as its cause
            cause = _message_of(error.__cause__ if isinstance(error.__cause__, Exception) else error)
            raise UnreachableError("the connection broke off", where=where, found=cause, fix="run again") from error
        finally:
            if bars:
                enable_progress_bars()

    def _offline_way(self) -> str:
        """Return a fix that uses a cached snapshot of the library, if any."""
        try:
            snapshot = self._cached_snapshot()
        except (LocalEntryNotFoundError, OSError, ValueError):
            return ""
        return f"; `HF_HUB_OFFLINE=1` uses commit {snapshot.name} from the cache of huggingface_hub"


_TOKEN = "log in with `hf auth login`, or set `HF_TOKEN`"


def _message_of(error: Exception) -> str:
    message = error.server_message if isinstance(error, HfHubHTTPError) else None
    return visible(message or reason(error)).rstrip(".")
