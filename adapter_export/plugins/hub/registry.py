"""OCI registries: a client of the distribution specification 1.1 for bundles and adapters.

Responses are untrusted: manifests are checked against the requested digest, blobs against digest and size.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from adapter_export.errors import (
    DeniedError,
    FormatError,
    HashError,
    InputError,
    NotFoundError,
    RemoteError,
    UnreachableError,
)
from adapter_export.plugins.hub.artifact import HEADS, Kind, Remote, RemoteFile, files_by_path
from adapter_export.plugins.hub.reference import RegistryReference
from adapter_export.safe_io.documents import parse_json, read_json
from adapter_export.safe_io.regular_files import open_regular, sha256_of
from adapter_export.words import argument, visible

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPES: Mapping[Kind, str] = {kind: f"application/vnd.adapter-export.{kind}.v1" for kind in HEADS}
"""`artifactType` of manifests, by kind of artifact."""

TITLE = "org.opencontainers.image.title"
"""Annotation of a layer with the path of its file, as in ORAS."""

_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
"""Media type of an empty config."""

_MEDIA_TYPES: Mapping[str, str] = {
    ".json": "application/json",
    ".md": "text/markdown",
    ".safetensors": "application/vnd.safetensors",
    ".onnx": "application/vnd.onnx",
    ".sig": "application/vnd.dev.sigstore.bundle.v0.3+json",
}
_ANY_TYPE = "application/octet-stream"

_MOST_MANIFEST_BYTES = 4 * 2**20
"""Maximum size of a manifest, which every registry must support."""

_MOST_ANSWER_BYTES = 2**20
_BLOCK_BYTES = 2**20
_TIMEOUT = httpx2.Timeout(60, connect=10)

_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class Registry:
    """A repository of a registry; use in a `with` statement.

    Args:
        reference: an artifact in the repository.
        plain_http: connect without TLS, as always for loopback hosts.
    """

    def __init__(self, reference: RegistryReference, *, plain_http: bool = False) -> None:
        self.reference = reference
        self._plain = plain_http or reference.is_loopback
        self._origin = httpx2.URL(f"{'http' if self._plain else 'https'}://{reference.host}")
        self._login, self._authorization = _read_login(reference.host), dict[str, str]()
        self._client = httpx2.Client(
            base_url=self._origin.join(f"/v2/{reference.repository}/"),
            # digests are of the bytes as stored, and a compressed answer could expand without limit
            headers={"Accept-Encoding": "identity"},
            timeout=_TIMEOUT,
            follow_redirects=True,
            event_hooks={"request": [self._check_scheme]},
            trust_env=not reference.is_loopback,
        )

    def __enter__(self) -> Registry:
        """Return this object."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._client.close()

    def resolve(self) -> Remote:
        """Read the current manifest of the reference.

        Raises:
            RemoteError: the registry does not respond, or rejects the request.
            FormatError: the manifest does not belong to an artifact of this package.
            HashError: the manifest does not match the requested digest.
        """
        where, digest = self.reference, self.reference.digest
        with self._send("GET", f"manifests/{where.version}", headers={"Accept": MANIFEST_TYPE}) as response:
            data = _read(response, _MOST_MANIFEST_BYTES)
        if data is None:
            raise FormatError(
                "the manifest is too large", where=where, expected=f"at most {_MOST_MANIFEST_BYTES:,} bytes"
            )
        actual = hashlib.sha256(data).hexdigest()
        if digest is not None and digest != f"sha256:{actual}":
            what = "the manifest does not match the requested digest"
            raise HashError(where, what, found=actual, expected=digest.removeprefix("sha256:"))
        return Remote(f"sha256:{actual}", _layers(data, where))

    def download(self, file: RemoteFile, folder: Path) -> None:
        """Write one file to its path in a folder, up to the size in the manifest.

        Raises:
            RemoteError: the registry rejects the request.
            FormatError: the size differs from the manifest.
            HashError: the contents differ from the manifest.
        """
        place, sha256, size = folder / file.path, hashlib.sha256(), 0
        where = f"{self.reference}, `{file.path}`"
        place.parent.mkdir(parents=True, exist_ok=True)
        with self._send("GET", f"blobs/sha256:{file.digest}") as response, place.open("xb") as written:
            for block in response.iter_raw(_BLOCK_BYTES):
                size += len(block)
                if size > file.size:
                    break
                sha256.update(block)
                written.write(block)
        if size != file.size:
            raise FormatError(
                "the size of the download differs from the manifest",
                where=where,
                found=f"{size:,} bytes" if size < file.size else "more",
                expected=f"{file.size:,} bytes",
                fix="run again; if this persists, push it again",
            )
        if sha256.hexdigest() != file.digest:
            what = "the download does not match the manifest's hash"
            raise HashError(where, what, found=sha256.hexdigest(), expected=str(file.digest), fix="push it again")

    def current(self) -> str | None:
        """Return the current digest of the reference, or `None`."""
        try:
            return self.resolve().pin
        except NotFoundError:
            return None
        except FormatError:
            return "something else"

    def push(self, kind: Kind, files: Mapping[str, Path], annotations: Mapping[str, str]) -> str:
        """Upload the missing files of an artifact, then its manifest, and return its digest.

        The manifest is deterministic: it contains no time.

        Raises:
            RemoteError: the registry does not respond, or rejects the request.
            FileError: a file cannot be read.
        """
        layers = []
        for path, file in sorted(files.items()):
            digest, size = f"sha256:{sha256_of(file)}", file.stat().st_size
            self._upload(digest, size, partial(_blocks, file))
            media_type = _MEDIA_TYPES.get(file.suffix, _ANY_TYPE)
            layers.append({"mediaType": media_type, "digest": digest, "size": size, "annotations": {TITLE: path}})
        config = f"sha256:{hashlib.sha256(_EMPTY).hexdigest()}"
        self._upload(config, len(_EMPTY), partial(iter, [_EMPTY]))
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPES[kind],
            "config": {"mediaType": _EMPTY_TYPE, "digest": config, "size": len(_EMPTY)},
            "layers": layers,
            "annotations": dict(annotations),
        }
        data = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        version = self.reference.tag or (None if self.reference.digest else self.reference.version)
        headers = {"Content-Type": MANIFEST_TYPE}
        with self._send("PUT", f"manifests/{version or digest}", headers=headers, content=data) as response:
            stored = response.headers.get("Docker-Content-Digest", digest)
        if stored != digest:
            fix = "use a registry that stores OCI manifests unchanged"
            raise RemoteError(
                "the registry changed the manifest", where=self.reference, found=stored, expected=digest, fix=fix
            )
        return digest

    def _upload(self, digest: str, size: int, blocks: Callable[[], Iterator[bytes]]) -> None:
        with self._send("HEAD", f"blobs/{digest}", missing=True) as response:
            if response.is_success:
                return
        with self._send("POST", "blobs/uploads/", headers={"Content-Length": "0"}) as response:
            place = response.headers.get("Location")
            url = None if place is None else response.url.join(place).copy_add_param("digest", digest)
        if url is None:
            raise RemoteError("the registry returned no upload location", where=self.reference)
        headers = {"Content-Type": _ANY_TYPE, "Content-Length": str(size)}
        with self._send("PUT", url, headers=headers, content=_Body(blocks)):
            pass

    @contextmanager
    def _send(
        self, method: str, url: str | httpx2.URL, *, missing: bool = False, **request: Any
    ) -> Iterator[httpx2.Response]:
        """Send a request; raise an error unless it succeeds, or the object is missing and may be (`missing`)."""
        where, target = self.reference, self._origin.join(self._client.base_url).join(url)
        # the login goes to the registry only, not to where an upload is redirected
        is_own = target.netloc == self._origin.netloc and target.scheme == self._origin.scheme
        headers = request.pop("headers", {})
        try:
            for is_last in (False, True):  # a second time after a challenge, with the login
                sent = {**headers, **(self._authorization if is_own else {})}
                with self._client.stream(method, target, headers=sent, **request) as response:
                    is_closed = response.status_code == httpx2.codes.UNAUTHORIZED and is_own and not is_last
                    if is_closed and self._log_in(response.headers.get("WWW-Authenticate", "")):
                        continue
                    if not response.is_success and not (missing and response.status_code == httpx2.codes.NOT_FOUND):
                        raise _refusal(response, where)
                    yield response
                    return
        except httpx2.TransportError as error:
            what = (
                "does not respond" if isinstance(error, httpx2.TimeoutException | httpx2.ConnectError) else "broke off"
            )
            fix = "check its name, the network and, for a registry without TLS, " + argument("plain_http", True)
            raise UnreachableError(
                f"the registry {what}", where=where, found=str(error) or type(error).__name__, fix=fix
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise RemoteError("the response of the registry is invalid", where=where, found=error) from error

    def _check_scheme(self, request: httpx2.Request) -> None:
        """Reject a redirection to an address without TLS."""
        if request.url.scheme != "https" and not self._plain:
            raise RemoteError(
                "the registry redirects to an address without TLS",
                where=self.reference,
                found=request.url.host,
                fix="use another registry; on a network that you trust, " + argument("plain_http", True),
            )

    def _log_in(self, challenge: str) -> bool:
        """Answer the registry's challenge with the saved login, or a token obtained with it."""
        scheme, _, rest = challenge.partition(" ")
        parameters = dict(_CHALLENGE.findall(rest))
        if scheme.lower() == "basic" and self._login is not None:
            self._authorization = {"Authorization": f"Basic {self._login}"}
            return True
        if scheme.lower() != "bearer" or "realm" not in parameters:
            return False
        wanted = {name: parameters[name] for name in ("service", "scope") if name in parameters}
        headers = {} if self._login is None else {"Authorization": f"Basic {self._login}"}
        url = httpx2.URL(parameters["realm"]).copy_merge_params(wanted)
        with self._client.stream("GET", url, headers=headers) as response:
            document = _document(response) if response.is_success else {}
        token = document.get("token", document.get("access_token"))
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            return False
        self._authorization = {"Authorization": f"Bearer {token}"}
        return True


class _Body:
    """The contents of a file, restartable: a request may be repeated with credentials."""

    def __init__(self, blocks: Callable[[], Iterator[bytes]]) -> None:
        self._blocks = blocks

    def __iter__(self) -> Iterator[bytes]:
        """Restart from the beginning."""
        return self._blocks()


def _blocks(path: Path) -> Iterator[bytes]:
    with open_regular(path) as file:
        yield from iter(partial(file.read, _BLOCK_BYTES), b"")


def _read(response: httpx2.Response, most: int) -> bytes | None:
    """Return the response body, or `None` if it exceeds `most` bytes."""
    data = bytearray()
    for block in response.iter_raw():
        data += block
        if len(data) > most:
            return None
    return bytes(data)


def _document(response: httpx2.Response) -> Mapping[str, Any]:
    """Return the JSON object of a response, or an empty one."""
    try:
        document = parse_json(_read(response, _MOST_ANSWER_BYTES) or b"", "answer")
    except (FormatError, httpx2.HTTPError):
        return {}
    return document if isinstance(document, dict) else {}


def _refusal(response: httpx2.Response, where: RegistryReference) -> RemoteError:
    """Return the error for an unsuccessful response."""
    status, message = response.status_code, ""
    errors = _document(response).get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        message = visible(str(errors[0].get("message", ""))[:200])
    answer = f"{status} {response.reason_phrase}{f': {message}' if message else ''}"
    if status in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN):
        fix = f"log in with `docker login {where.host}` or `oras login {where.host}`"
        return DeniedError("the registry denies access", where=where, found=answer, fix=fix)
    if status == httpx2.codes.NOT_FOUND:
        return NotFoundError("does not exist", where=where, found=answer, fix="check its name, and its tag or digest")
    if status == httpx2.codes.TOO_MANY_REQUESTS or status >= httpx2.codes.INTERNAL_SERVER_ERROR:
        return UnreachableError(
            "the registry is temporarily unavailable", where=where, found=answer, fix="run again later"
        )
    return RemoteError("the registry rejects the request", where=where, found=answer)


def _layers(data: bytes, where: RegistryReference) -> Mapping[str, RemoteFile]:
    """Return the files of a manifest.

    Raises:
        FormatError: the manifest does not belong to an artifact of this package, or a file name leaves its folder.
    """
    document = parse_json(data, where)
    known = dict(document) if isinstance(document, dict) else {}
    kind, layers = known.get("artifactType"), known.get("layers")
    if kind not in ARTIFACT_TYPES.values() or not isinstance(layers, list):
        raise FormatError(
            "is neither an adapter nor a bundle",
            where=where,
            found=f"a manifest of the type {visible(str(kind or known.get('mediaType')))}",
            expected=" or ".join(ARTIFACT_TYPES.values()),
            fix="pass a reference created by `push`",
        )
    rows = []
    for layer in layers:
        about = layer if isinstance(layer, dict) else {}
        notes = about.get("annotations")
        title = notes.get(TITLE) if isinstance(notes, dict) else None
        algorithm, _, digest = str(about.get("digest")).partition(":")
        rows.append(
            {"path": title, "size": about.get("size"), "digest": digest if algorithm == "sha256" else algorithm}
        )
    return files_by_path(rows, where)


def _read_login(host: str) -> str | None:
    """Return user and password in base64 from `docker login` or a credential helper; `None` without a login.

    Raises:
        InputError: Docker's config file cannot be read.
    """
    folder = os.environ.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    if not path.is_file():
        return None
    document: Any = read_json(path)
    try:
        saved = document.get("auths", {}).get(host, {}).get("auth")
        helper = document.get("credHelpers", {}).get(host) or document.get("credsStore")
        if saved:
            b64decode(saved, validate=True)
            return str(saved)
    except (AttributeError, TypeError, ValueError) as error:
        raise FormatError(
            "is not a Docker config file", where=path, expected="`auths` in the format of `docker login`"
        ) from error
    return None if not helper else _ask_helper(str(helper), host)


def _ask_helper(helper: str, host: str) -> str | None:
    """Return the login for a host from a `docker-credential-…` program, or `None`."""
    # the name becomes part of a program's name
    if not re.fullmatch(r"[\w.-]+", helper):
        return None
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"], input=host.encode(), capture_output=True, timeout=30, check=True
        )
        login: Any = parse_json(done.stdout, f"docker-credential-{helper}")
        return b64encode(f"{login['Username']}:{login['Secret']}".encode()).decode()
    except (OSError, subprocess.SubprocessError, InputError, LookupError, TypeError):
        return None
