"""The few routes of the Hugging Face Hub that huggingface_hub asks for here, on this machine. The Hub is not to be had.

It knows repositories, branches, commits, and files in git and in LFS, and it wants the token `TOKEN` for every change.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_tests"
_LFS = (".safetensors", ".bin", ".onnx", ".onnx_adapter")


@dataclass
class Repository:
    """Commits with all their files, and targets of branches."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, branch: str, changes: Mapping[str, bytes | None]) -> str:
        """Make a commit; a file without bytes is deleted."""
        before = self.branches.get(branch)
        files = {**self.commits.get(before or "", {}), **changes}
        kept = {path: data for path, data in files.items() if data is not None}
        sha = hashlib.sha1(repr((before, sorted(kept.items()))).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = kept, sha
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a branch or a commit."""
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


@dataclass
class HubServer:
    """A running hub.

    Attributes:
        url: value of `HF_ENDPOINT`.
        repositories: repositories by `owner/name`.
        asked: received requests, such as `GET /api/models/…`.
        status: status of all responses, overriding them.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int | None = None


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Start a hub, and stop it at the end."""
    state = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def hub_here(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[HubServer]:
    """Start a hub that the libraries of this process talk to, with a cache of theirs, and stop it at the end."""
    with hub_server() as running:
        # the libraries read their environment when they are imported
        patch.setattr(constants, "ENDPOINT", running.url)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setenv("HF_TOKEN", TOKEN)
        yield running


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: HubServer

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.state.status is not None:
            self._json({"error": "not now"}, self.state.status)
            return
        for pattern, name in _ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                if self.command == "POST" and f"Bearer {TOKEN}" != self.headers.get("Authorization"):
                    self._json({"error": "Invalid credentials"}, 401)
                    return
                getattr(self, f"_{name}")(body, **found.groupdict())
                return
        self._json({"error": "no such page"}, 404)

    def _json(self, document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._send(json.dumps(document).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, data: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _repository(self, name: str) -> Repository | None:
        found = self.state.repositories.get(name)
        if found is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif found.gated:
            self._json({"error": "Access is restricted"}, 403, {"X-Error-Code": "GatedRepo"})
            return None
        return found

    def _commit_of(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self._repository(name)
        sha = repository and repository.find(revision)
        if repository is not None and sha is None:
            self._json({"error": f"Invalid rev id: {revision}"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return (sha, repository.commits[sha]) if repository is not None and sha is not None else None

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        is_new = name not in self.state.repositories
        if is_new:
            self.state.repositories[name] = Repository()
            self.state.repositories[name].commit("main", {".gitattributes": b"*.bin filter=lfs\n"})
        self._json({"url": f"{self.state.url}/{name}", "name": name, "id": name}, 200 if is_new else 409)

    def _branch(self, body: bytes, name: str, branch: str) -> None:
        if (repository := self._repository(name)) is not None:
            repository.branches.setdefault(branch, repository.branches["main"])
            self._json({})

    def _info(self, body: bytes, name: str, revision: str | None = None) -> None:
        if (found := self._commit_of(name, revision or "main")) is not None:
            sha, files = found
            rows = [_sibling(path, data) for path, data in files.items()]
            self._json({"id": name, "modelId": name, "sha": sha, "siblings": rows, "tags": [], "private": False})

    def _tree(self, body: bytes, name: str, revision: str, folder: str | None = None) -> None:
        if (found := self._commit_of(name, revision)) is None:
            return
        inside = f"{folder}/" if folder else ""
        files = [(path, data) for path, data in found[1].items() if path.startswith(inside)]
        rows = [{"type": "file", "path": path, "oid": "0", "size": len(data)} for path, data in files]
        if rows or not folder:
            self._json(rows)
        else:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    def _yaml(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, body: bytes, name: str, revision: str) -> None:
        modes = [
            {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(_LFS) else "regular"}
            for one in json.loads(body)["files"]
        ]
        self._json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})

    def _batch(self, body: bytes, name: str) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.state.url}/lfs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        headers = {"Content-Type": "application/vnd.git-lfs+json"}
        self._json({"transfer": "basic", "objects": objects}, headers=headers)

    def _put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.state.lfs[oid] = body
        self._json({})

    def _commit(self, body: bytes, name: str, revision: str) -> None:
        changes: dict[str, bytes | None] = {}
        for line in body.splitlines():
            entry: Any = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                changes[value["path"]] = b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                changes[value["path"]] = self.state.lfs[value["oid"]]
            elif entry["key"] == "deletedFile":
                changes[value["path"]] = None
        if (repository := self._repository(name)) is not None:
            sha = repository.commit(revision, changes)
            url = f"{self.state.url}/{name}/commit/{sha}"
            self._json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def _resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        if (found := self._commit_of(name, revision)) is None:
            return
        sha, files = found
        if path not in files:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        headers = {"X-Repo-Commit": sha, "ETag": etag, "Content-Type": "application/octet-stream"}
        self._send(files[path], 200, headers)


def _sibling(path: str, data: bytes) -> dict[str, object]:
    row: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
    if path.endswith(_LFS):
        row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return row


_NAME = r"(?P<name>(?:datasets/)?[^/]+/[^/]+)"
_KIND = r"/api/(?:models/)?"
"""Datasets are repositories by the name `datasets/owner/name`."""
_ROUTES = {
    r"POST /api/repos/create": "create",
    r"POST /api/validate-yaml": "yaml",
    rf"POST /api/models/{_NAME}/branch/(?P<branch>.+)": "branch",
    rf"POST /api/models/{_NAME}/preupload/(?P<revision>.+)": "preupload",
    rf"POST /api/models/{_NAME}/commit/(?P<revision>.+)": "commit",
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": "batch",
    r"PUT /lfs/(?P<oid>[0-9a-f]{64})": "put",
    rf"GET {_KIND}{_NAME}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?": "tree",
    rf"GET {_KIND}{_NAME}(?:/revision/(?P<revision>.+))?": "info",
    rf"(?:GET|HEAD) /{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": "resolve",
}
