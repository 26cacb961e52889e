"""The Hugging Face Hub, by huggingface_hub, whose tokens, endpoint (`HF_ENDPOINT`), cache and offline mode it has."""

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
    visible,
)
from adapter_export.format.manifest_json import UNLISTED
from adapter_export.hub.artifact import HEADS, Remote, RemoteFile, files_by_path, needed_files
from adapter_export.hub.reference import DatasetReference, HubReference
from adapter_export.safe_io.parsers import reason
from adapter_export.safe_io.regular_files import copy_hashed
from adapter_export.version import __version__

_TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[0]
"""Errors of the library's HTTP client, which depends on its release."""

_UNAUTHORIZED, _FORBIDDEN, _TOO_MANY, _SERVER_ERROR = 401, 403, 429, 500


def endpoint() -> str:
    """The address of the hub."""
    return HfApi().endpoint


def is_offline() -> bool:
    """Return whether `HF_HUB_OFFLINE` forbids the network."""
    return is_offline_mode()


class Hub:
    """One repository of the hub.

    Args:
        reference: to a revision of it.
    """

    def __init__(self, reference: HubReference | DatasetReference) -> None:
        self.reference = reference
        self._type = "dataset" if isinstance(reference, DatasetReference) else "model"
        self._api = HfApi(library_name="adapter-export", library_version=__version__)
        self._snapshot: Path | None = None
        self._commit: str | None = None

    def resolve(self) -> Remote:
        """Resolve the reference to a commit and its files; offline, by the library's cache.

        Raises:
            RemoteError: the hub does not answer, has none, or does not give it.
            FormatError: a file has a name that leads out of its folder.
        """
        name, revision = self.reference.repository, self.reference.revision
        with self._asked():
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
                    {"path": one.rfilename, "size": one.size or 0, "digest": one.lfs.sha256 if one.lfs else None}
                    for one in info.siblings or ()
                ]
        if not re.fullmatch(r"[0-9a-f]{40,64}", self._commit):
            raise RemoteError("the hub names no commit", where=self.reference, found=visible(self._commit))
        return Remote(self._commit, files_by_path(rows, self.reference))

    def download(self, file: RemoteFile, folder: Path) -> None:
        """Write one file to its path in a folder.

        Raises:
            RemoteError: the hub does not give it.
            FormatError: it has another size than the hub said.
            HashError: it has other bytes than the hub said, where it said that.
        """
        place = folder / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        if self._snapshot is not None:
            copy_hashed(self._snapshot / file.path, place, file.size)
            return
        where = f"{self.reference}, `{file.path}`"
        with TemporaryDirectory(dir=folder, prefix=".") as beside:  # the library keeps notes of its own there
            with self._asked():
                path = self._api.hf_hub_download(
                    self.reference.repository,
                    file.path,
                    repo_type=self._type,
                    revision=self._commit,
                    local_dir=beside,
                )
            got = Path(beside, "got")
            found, size = copy_hashed(Path(path), got, file.size + 1), got.stat().st_size
            if size != file.size:
                expected = f"{file.size:,} bytes"
                raise FormatError(
                    "the hub gave another number of bytes than it said",
                    where=where,
                    found=f"{size:,} bytes",
                    expected=expected,
                )
            if file.digest is not None and found != file.digest:
                raise HashError(where, "the hub gave other bytes than it said", found=found, expected=file.digest)
            got.replace(place)

    def _cached_snapshot(self) -> Path:
        """Return the snapshot of the reference in the library's cache; errors are those of the library."""
        name, revision = self.reference.repository, self.reference.revision
        return Path(snapshot_download(name, repo_type=self._type, revision=revision, local_files_only=True))

    def push(self, files: Mapping[str, Path], *, private: bool, message: str) -> str:
        """Make one commit of the files of an artifact, in a repository that is made if there is none; return its id.

        Files of the bundle or adapter that was there before, and that this one does not have, are deleted.

        Raises:
            RemoteError: the hub does not answer or does not take it.
        """
        name, revision = self.reference.repository, self.reference.revision
        with self._asked():
            self._api.create_repo(name, private=private or None, exist_ok=True)
            if revision is not None:
                self._api.create_branch(name, branch=revision, exist_ok=True)
            gone = self._own_before() - files.keys()
            adds = [CommitOperationAdd(path, file) for path, file in sorted(files.items())]
            deletes = [CommitOperationDelete(path) for path in sorted(gone)]
            done = self._api.create_commit(name, [*adds, *deletes], commit_message=message, revision=revision)
        return str(done.oid)

    def current(self) -> str | None:
        """Return the current commit of the reference; `None` if there is none."""
        try:
            with self._asked():
                info = self._api.repo_info(self.reference.repository, revision=self.reference.revision)
                return str(info.sha)
        except NotFoundError:
            return None

    def _own_before(self) -> set[str]:
        """Return the files of the bundle or the adapter that the repository holds; what else is there stays."""
        own: set[str] = set()
        with suppress(FormatError, NotFoundError), TemporaryDirectory(prefix="adapter-export-") as folder:
            remote = self.resolve()
            for kind, head in HEADS.items():
                if head in remote.files:
                    own |= {head, *(UNLISTED if kind == "bundle" else ())}
                    self.download(remote.files[head], Path(folder))
                    own |= needed_files(Path(folder), kind).keys()
        return own & remote.files.keys()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Turn what the library raises into errors of this package, and keep its progress bars from the terminal."""
        where, bars = self.reference, not are_progress_bars_disabled()
        disable_progress_bars()
        try:
            yield
        except OfflineModeIsEnabled as error:
            fix = "unset it, or pull this reference before"
            raise UnreachableError("`HF_HUB_OFFLINE` forbids the network", where=where, fix=fix) from error
        except LocalEntryNotFoundError as error:
            what = (
                "is not in the cache, and `HF_HUB_OFFLINE` forbids the network" if is_offline() else "the hub broke off"
            )
            fix = "unset it, or pull this reference before" if is_offline() else "run again"
            raise UnreachableError(what, where=where, found=_said(error), fix=fix) from error
        except GatedRepoError as error:
            page = f"{endpoint()}/{'datasets/' if self._type == 'dataset' else ''}{where.repository}"
            fix = f"ask for access at {page}, then {_TOKEN}"
            raise DeniedError("is gated: its owner grants access", where=where, found=_said(error), fix=fix) from error
        except RepositoryNotFoundError as error:
            fix = f"check its name; if it is private, {_TOKEN}"
            what = "the hub has no such repository, or does not show it to you"
            raise NotFoundError(what, where=where, found=_said(error), fix=fix) from error
        except RevisionNotFoundError as error:
            fix = "give a branch, a tag or a commit of it, or leave the revision out"
            what = "the repository has no such revision"
            raise NotFoundError(what, where=where, found=_said(error), fix=fix) from error
        except EntryNotFoundError as error:
            fix = "run again: it was changed meanwhile"
            raise NotFoundError("the repository has no such file", where=where, found=_said(error), fix=fix) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (_UNAUTHORIZED, _FORBIDDEN):
                raise DeniedError(
                    "the hub does not let you do that", where=where, found=_said(error), fix=_TOKEN
                ) from error
            if status == _TOO_MANY or status >= _SERVER_ERROR:
                fix = "run again later"
                raise UnreachableError("the hub cannot answer now", where=where, found=_said(error), fix=fix) from error
            raise RemoteError("the hub refuses", where=where, found=_said(error)) from error
        except HFValidationError as error:
            raise UsageError("is no name of a repository", where=where, found=_said(error)) from error
        except (_TRANSPORT, ConnectionError, TimeoutError) as error:
            fix = f"check the network and `HF_ENDPOINT`{self._offline_way()}"
            raise UnreachableError("the hub does not answer", where=where, found=_said(error), fix=fix) from error
        except RuntimeError as error:  # of a thread of the library, with what went wrong as its cause
            found = _said(error.__cause__ if isinstance(error.__cause__, Exception) else error)
            raise UnreachableError("the hub broke off", where=where, found=found, fix="run again") from error
        finally:
            if bars:
                enable_progress_bars()

    def _offline_way(self) -> str:
        """Return how to go on with a snapshot in the library's cache, if there is one."""
        try:
            snapshot = self._cached_snapshot()
        except (LocalEntryNotFoundError, OSError, ValueError):
            return ""
        return f"; `HF_HUB_OFFLINE=1` takes the commit {snapshot.name} from the cache of huggingface_hub"


_TOKEN = "log in with `hf auth login`, or set `HF_TOKEN`"


def _said(error: Exception) -> str:
    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    return visible(said or reason(error)).rstrip(".")
