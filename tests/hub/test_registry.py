"""Pushes to a real OCI registry: complete when pulled, readable by other tools, and nothing more."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from heard import Heard
from oci_registry import NAME, PASSWORD, OciRegistry, oci_registry, token_registry

from adapter_export.errors import (
    AbandonedFileWarning,
    AdapterExportError,
    DeniedError,
    FormatError,
    HashError,
    NotFoundError,
    UnreachableError,
    UsageError,
)
from adapter_export.plugins.hub import registry
from adapter_export.plugins.hub.fetch import fetch, fetch_all
from adapter_export.plugins.hub.push import Pushed, push_folder
from adapter_export.runtime import Bundle


def _push(folder: Path, reference: str, heard: Heard | None = None, card: str | None = None) -> Pushed:
    return push_folder(
        folder,
        reference,
        card=card,
        licence="mit",
        private=False,
        plain_http=False,
        reporter=heard or Heard(),
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _nothing_left(cache: Path) -> bool:
    return not [path for path in cache.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def sent(bundle: Path, registry: OciRegistry, tmp_path_factory: pytest.TempPathFactory) -> Pushed:
    return _push(bundle, f"oci://{registry.host}/team/tiny:1", card="# Tiny\n")


def test_pushed_bundles_are_fetched_unchanged(bundle: Path, sent: Pushed, registry: OciRegistry) -> None:
    found = fetch(sent.reference)
    assert _files(found) == {**_files(bundle), "README.md": b"# Tiny\n"}
    assert Bundle.open(found, expect=sent.digest).session(threads=1).adapters
    assert sent.digest == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert fetch(sent.pinned) == found


def test_pushed_adapters_are_fetched_unchanged(adapter: Path, registry: OciRegistry) -> None:
    sent = _push(adapter, f"oci://{registry.host}/team/adapter")
    found = fetch_all(f"oci://{registry.host}/team/adapter:latest")
    assert (found.kind, found.pin, found.digest) == ("adapter", sent.pin, sent.digest)
    assert _files(found.path) == _files(adapter)


def test_oras_pulls_pushed_files_unchanged(bundle: Path, sent: Pushed, tmp_path: Path) -> None:
    from oras.client import OrasClient

    OrasClient(insecure=True).pull(sent.pinned.removeprefix("oci://"), outdir=str(tmp_path / "oras"))
    assert _files(tmp_path / "oras") == {**_files(bundle), "README.md": b"# Tiny\n"}


def test_the_manifest_is_that_of_an_artifact(sent: Pushed, registry: OciRegistry) -> None:
    manifest = json.loads(registry.blob(sent.pin).read_bytes())
    assert manifest["artifactType"] == "application/vnd.adapter-export.bundle.v1"
    assert manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert manifest["annotations"]["org.opencontainers.image.licenses"] == "mit"
    assert manifest["annotations"]["adapter-export.digest"] == f"sha256:{sent.digest}"
    titles = [layer["annotations"]["org.opencontainers.image.title"] for layer in manifest["layers"]]
    assert titles == sorted(sent.files)


def test_the_same_adapter_has_the_same_digest_everywhere(adapter: Path, registry: OciRegistry) -> None:
    heard = Heard()
    places = ("other/place:x", "other/place:x", "place:y")
    assert len({_push(adapter, f"oci://{registry.host}/{place}", heard).pin for place in places}) == 1
    assert not heard.notes


def test_moved_tags_are_noted_on_push_and_pull(adapter: Path, other: Path, registry: OciRegistry) -> None:
    reference, heard = f"oci://{registry.host}/team/moving:now", Heard()
    first = _push(adapter, reference, heard)
    fetch(reference, reporter=heard)
    assert not heard.notes
    second = _push(other, reference, heard)
    fetch(reference, reporter=heard)
    said = f"`{reference}` has moved: it was `{first.pin}`, and is `{second.pin}` now"
    assert heard.notes == [said, said]
    assert fetch(first.pinned) != fetch(second.pinned)


def test_expected_digest_is_checked_before_the_download(sent: Pushed, cache: Path) -> None:
    heard = Heard()
    with pytest.raises(HashError, match="does not match the expected digest"):
        fetch_all(sent.reference, expect="0" * 64, reporter=heard)
    assert not heard.steps
    assert _nothing_left(cache)
    found = fetch(sent.reference, expect=f"sha256:{sent.digest}")
    with pytest.raises(HashError, match="does not match the expected digest"):  # and of what the cache has
        fetch(sent.reference, expect="0" * 64)
    assert found.is_dir()


def test_failed_proofs_keep_bundles_out_of_the_cache(sent: Pushed, cache: Path) -> None:
    def refuse(folder: Path) -> None:
        assert (folder / "manifest.json").is_file()
        raise FormatError("is not approved")

    with pytest.raises(FormatError, match="is not approved"):
        fetch(sent.reference, proof=refuse)
    assert _nothing_left(cache)
    fetch(sent.reference)
    with pytest.raises(FormatError, match="is not approved"):  # what another took without that proof
        fetch(sent.reference, proof=refuse)


def test_damaged_cache_files_are_downloaded_again(sent: Pushed) -> None:
    heard = Heard()
    found = fetch(sent.pinned)
    (found / "base.bin").write_bytes(b"other")
    assert _files(fetch(sent.pinned, reporter=heard))["base.bin"] != b"other"
    assert "damaged and are downloaded again" in heard.notes[0]


@pytest.mark.extended
def test_a_pin_needs_no_registry_and_a_tag_says_so(adapter: Path, tmp_path: Path) -> None:
    with oci_registry(tmp_path) as short:
        sent = _push(adapter, f"oci://{short.host}/tiny:1")
        found = fetch(sent.reference)
    assert fetch(sent.pinned) == found
    with pytest.raises(UnreachableError, match=f"does not respond.*is in the cache: pass `{sent.pinned}`"):
        fetch(sent.reference)
    with pytest.raises(UnreachableError, match=r"does not respond.*plain_http"):
        fetch(f"oci://{short.host}/another:1")
    with pytest.raises(UnreachableError, match="does not respond"):
        _push(adapter, sent.reference)


def test_a_registry_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(registry, "_TIMEOUT", httpx2.Timeout(0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reference = f"oci://127.0.0.1:{silent.getsockname()[1]}/tiny:1"
        with pytest.raises(UnreachableError, match="does not respond; found timed out"):
            fetch(reference)
    assert _nothing_left(cache)


def test_only_loopback_is_asked_without_tls() -> None:
    asked = httpx2.Request("GET", "http://registry.example/v2/")
    for host, plain, allowed in (
        ("localhost:5000", False, True),
        ("a.example", False, False),
        ("a.example", True, True),
    ):
        client = registry.Registry(registry.RegistryReference(host, "tiny"), plain_http=plain)
        if allowed:
            client._check_scheme(asked)
        else:
            with pytest.raises(AdapterExportError, match="redirects to an address without TLS"):
                client._check_scheme(asked)


def test_missing_references_are_named(registry: OciRegistry, sent: Pushed, cache: Path) -> None:
    for reference in (
        f"oci://{registry.host}/team/tiny:none",
        f"oci://{registry.host}/team/none:1",
        f"oci://{registry.host}/team/tiny@sha256:{'0' * 64}",
    ):
        with pytest.raises(NotFoundError, match="does not exist; found 404 Not Found: manifest unknown"):
            fetch(reference)
    assert _nothing_left(cache)


def _log_in(folder: Path, host: str, password: str) -> None:
    """Write what `docker login` writes."""
    auth = b64encode(f"{NAME}:{password}".encode()).decode()
    (folder / "docker").mkdir(exist_ok=True)
    (folder / "docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


@pytest.mark.parametrize("start", [partial(oci_registry, login=True), token_registry], ids=["password", "token"])
@pytest.mark.extended
def test_a_login_is_that_of_docker(start: Any, adapter: Path, tmp_path: Path, cache: Path) -> None:
    with start(tmp_path) as closed:
        reference = f"oci://{closed.host}/team/adapter:1"
        for run in (lambda: fetch(reference), lambda: _push(adapter, reference)):
            with pytest.raises(DeniedError, match=r"denies access; found 401 Unauthorized.*docker login"):
                run()
        _log_in(tmp_path, closed.host, "wrong")
        with pytest.raises(DeniedError):
            _push(adapter, reference)
        assert _nothing_left(cache)
        _log_in(tmp_path, closed.host, PASSWORD)
        _push(adapter, reference)
        assert _files(fetch(reference)) == _files(adapter)


@pytest.mark.extended
def test_a_helper_may_have_the_login(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "docker-credential-tests"
    program.write_text(
        f'#!/bin/sh\nread host\necho "{{\\"Username\\": \\"{NAME}\\", \\"Secret\\": \\"{PASSWORD}\\"}}"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text('{"credsStore": "tests"}')
    with oci_registry(tmp_path, login=True) as closed:
        assert _push(adapter, f"oci://{closed.host}/team/adapter:1").kind == "adapter"


def test_an_interrupt_leaves_nothing_and_a_kill_is_cleared_away(sent: Pushed, cache: Path) -> None:
    class Interrupting(Heard):
        def step(self, label: str, done: int = 0, total: int | None = None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_all(sent.reference, reporter=Interrupting())
    assert _nothing_left(cache)
    killed = cache / "remote" / f".{sent.pin.replace(':', '-')}.0123abcd.tmp"
    killed.mkdir(parents=True)
    (killed / "manifest.json").write_text("{")
    with pytest.warns(AbandonedFileWarning, match="removed: the process writing it was killed"):
        found = fetch(sent.reference)
    assert [path for path in (cache / "remote").iterdir() if path.name.startswith(".")] == []
    assert found.name == sent.pin.replace(":", "-")


def test_concurrent_fetches_download_once(adapter: Path, registry: OciRegistry) -> None:
    sent = _push(adapter, f"oci://{registry.host}/team/busy:1")
    heard = Heard()
    with ThreadPoolExecutor(6) as pool:
        found = {one.path for one in pool.map(lambda _: fetch_all(sent.pinned, reporter=heard), range(6))}
    assert len(found) == 1
    assert heard.steps == ["downloading 2 files, 0.0 MB"]


def _changed(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (_changed, (HashError, "the download does not match the manifest's hash")),
        (lambda data: data[: len(data) // 2], (AdapterExportError, "broke off|size of the download")),
        (lambda data: data * 2, (FormatError, "the size of the download differs from the manifest; found more")),
    ],
    ids=["changed", "truncated", "longer"],
)
@pytest.mark.extended
def test_damage_in_the_registry_is_found(
    change: Callable[[bytes], bytes], refusal: Any, adapter: Path, tmp_path: Path, cache: Path
) -> None:
    with oci_registry(tmp_path) as own:
        sent = _push(adapter, f"oci://{own.host}/tiny:1")
        blob = own.blob(hashlib.sha256((adapter / "weights.safetensors").read_bytes()).hexdigest())
        blob.write_bytes(change(blob.read_bytes()))
        with pytest.raises(refusal[0], match=refusal[1]):
            fetch(sent.reference)
    assert _nothing_left(cache)


def _evil(document: dict[str, Any], title: object) -> None:
    document["layers"][0]["annotations"]["org.opencontainers.image.title"] = title


EVIL: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "up": (lambda document: _evil(document, "../x"), "a path that may leave its folder"),
    "absolute": (lambda document: _evil(document, "/etc/x"), "a path that may leave its folder"),
    "drive": (lambda document: _evil(document, "c:x"), "a path that may leave its folder"),
    "no title": (lambda document: document["layers"][0].pop("annotations"), "null"),
    "twice": (lambda document: document["layers"].append(document["layers"][0]), "lists a file twice"),
    "case": (lambda document: _evil(document, "MANIFEST.json"), "lists a file twice"),
    "a size below 0": (lambda document: document["layers"][0].update(size=-1), "-1"),
    "a size that is none": (lambda document: document["layers"][0].update(size="1"), "expected an integer"),
    "too large": (lambda document: document["layers"][0].update(size=2**60), "is too large"),
    "another hash": (lambda document: document["layers"][0].update(digest="md5:0"), "64 lower-case"),
    "an image": (lambda document: document.pop("artifactType"), "is neither an adapter nor a bundle"),
    "no layers": (lambda document: document.update(layers=None), "is neither an adapter nor a bundle"),
    "no head": (lambda document: document.update(layers=document["layers"][:3]), "is neither a bundle nor an adapter"),
    "a file less": (
        lambda document: document["layers"].pop(5),
        "lacks files listed in its `manifest.json`",
    ),
}


@pytest.mark.parametrize("name", EVIL)
def test_a_manifest_of_somebody_else_is_refused(name: str, sent: Pushed, cache: Path, monkeypatch: Any) -> None:
    change, words = EVIL[name]
    host = sent.reference.removeprefix("oci://").split("/")[0]
    manifest = httpx2.get(f"http://{host}/v2/team/tiny/manifests/1", headers={"Accept": registry.MANIFEST_TYPE}).json()
    change(manifest)
    # a registry refuses some of these itself, and not every registry does: what arrives is what counts
    data = json.dumps(manifest).encode()
    monkeypatch.setattr(registry, "_read", lambda *_: data)
    with pytest.raises(FormatError, match=words):
        fetch(sent.reference)
    assert _nothing_left(cache)


def test_unlisted_layers_are_not_downloaded(bundle: Path, registry: OciRegistry, sent: Pushed) -> None:
    blob = b"import os"
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    with httpx2.Client(base_url=f"http://{registry.host}/v2/team/tiny/") as client:
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        manifest = client.get("manifests/1", headers=accept).json()
        place = client.post("blobs/uploads/").headers["Location"]
        client.put(httpx2.URL(place).copy_add_param("digest", digest), content=blob).raise_for_status()
        layer = {"digest": digest, "size": len(blob), "mediaType": "text/x-python"}
        manifest["layers"].append({**layer, "annotations": {"org.opencontainers.image.title": "modeling.py"}})
        headers = {"Content-Type": accept["Accept"]}
        client.put("manifests/more", content=json.dumps(manifest), headers=headers).raise_for_status()
    assert _files(fetch(f"oci://{registry.host}/team/tiny:more")).keys() == _files(fetch(sent.reference)).keys()


def test_damaged_bundles_are_not_pushed(bundle: Path, registry: OciRegistry, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "base.bin").write_bytes(_changed((copy / "base.bin").read_bytes()))
    with pytest.raises(HashError):
        _push(copy, f"oci://{registry.host}/team/damaged:1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="is neither a bundle nor an adapter"):
        _push(tmp_path / "empty", f"oci://{registry.host}/team/damaged:1")
    with pytest.raises(NotFoundError):
        fetch(f"oci://{registry.host}/team/damaged:1")
    with pytest.raises(UsageError, match="cannot be overwritten"):
        _push(bundle, f"oci://{registry.host}/team/damaged@sha256:{'0' * 64}")
