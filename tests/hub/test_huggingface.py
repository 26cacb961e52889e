"""`hf://` by huggingface_hub itself, against a hub on this machine that knows the routes it asks for.

Xet storage is off: its server is not to be had. Large files go by LFS, as huggingface_hub does without Xet.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from heard import Heard
from hub_server import HubServer, Repository
from huggingface_hub import constants, snapshot_download

from adapter_export.errors import (
    AdapterExportError,
    DeniedError,
    FormatError,
    NotFoundError,
    UnreachableError,
)
from adapter_export.plugins.hub import artifact
from adapter_export.plugins.hub.fetch import fetch, fetch_all
from adapter_export.plugins.hub.push import Pushed, push_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),  # the library of its own client
    pytest.mark.usefixtures("hub"),
]


def _push(folder: Path, reference: str, heard: Heard | None = None) -> Pushed:
    return push_folder(
        folder,
        reference,
        card="# Card\n",
        licence=None,
        private=False,
        plain_http=False,
        reporter=heard or Heard(),
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pushed_bundles_are_fetched_unchanged(hub: HubServer, bundle: Path) -> None:
    sent = _push(bundle, "hf://me/tiny")
    found = fetch("hf://me/tiny")
    assert _files(found) == {**_files(bundle), "README.md": b"# Card\n"}
    assert sent.pinned == f"hf://me/tiny@{hub.repositories['me/tiny'].branches['main']}"
    hub.asked.clear()
    assert fetch(sent.pinned) == found
    assert not hub.asked  # a commit is never asked for again
    assert fetch("hf://me/tiny") == found
    assert not [asked for asked in hub.asked if "resolve" in asked]


def test_branches_move_and_old_files_go(hub: HubServer, bundle: Path, adapter: Path) -> None:
    heard = Heard()
    first = _push(bundle, "hf://me/tiny@next", heard)
    assert first.pin == fetch_all("hf://me/tiny@next", reporter=heard).pin
    assert fetch_all("hf://me/tiny@next", reporter=heard).pin == first.pin
    assert not [note for note in heard.notes if first.pin in note]
    second = _push(adapter, "hf://me/tiny@next", heard)
    assert fetch_all("hf://me/tiny@next", reporter=heard).pin == second.pin
    assert heard.notes[-2:] == [f"`hf://me/tiny@next` has moved: it was `{first.pin}`, and is `{second.pin}` now"] * 2
    files = hub.repositories["me/tiny"].commits[second.pin]
    assert files.keys() == {".gitattributes", "README.md", "adapter_graph.json", "weights.safetensors"}


def test_an_own_file_in_the_repository_stays_and_is_not_taken(
    hub: HubServer, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _push(adapter, "hf://me/one")
    hub.repositories["me/one"].commit("main", {"modeling.py": b"import os", "pytorch_model.bin": b"\x80" * 1000})
    monkeypatch.setattr(artifact, "MOST_TOTAL_BYTES", sum(path.stat().st_size for path in adapter.iterdir()) + 10)
    assert sorted(path.name for path in fetch("hf://me/one").iterdir()) == [
        "README.md",
        "adapter_graph.json",
        "weights.safetensors",
    ]
    _push(adapter, "hf://me/one")
    assert "modeling.py" in hub.repositories["me/one"].commits[fetch_all("hf://me/one", reporter=Heard()).pin]


def test_cached_revisions_are_fetched_without_network(
    hub: HubServer, adapter: Path, other: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _push(adapter, "hf://me/one")
    _push(other, "hf://me/other")
    found = fetch("hf://me/one")
    snapshot_download("me/other", endpoint=hub.url)  # as another program does
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("hf://me/one") == found
    assert _files(fetch("hf://me/other")) == {**_files(other), "README.md": b"# Card\n"}
    for reference in ("hf://me/third", "oci://127.0.0.1:1/third:1"):
        with pytest.raises(UnreachableError, match=r"is not in the cache, and `HF_HUB_OFFLINE` forbids the network"):
            fetch(reference)
    with pytest.raises(UnreachableError, match="`HF_HUB_OFFLINE` forbids the network"):
        _push(adapter, "hf://me/one")
    assert not hub.asked


def _none_left(cache: Path) -> bool:
    return not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda hub: hub.repositories.clear(),
            NotFoundError,
            "the repository does not exist.*found Repository not found",
        ),
        (
            lambda hub: setattr(hub.repositories["me/one"], "gated", True),
            DeniedError,
            "is gated: its owner grants",
        ),
        (lambda hub: setattr(hub, "status", 503), UnreachableError, "temporarily unavailable"),
        (lambda hub: setattr(hub, "status", 403), DeniedError, "denies access"),
        (lambda hub: setattr(hub, "status", 418), AdapterExportError, "the hub rejects the request"),
        (lambda hub: _commit(hub, {"weights.safetensors": b"other"}), FormatError, "is not a safetensors file"),
        (lambda hub: _commit(hub, {"weights.safetensors": None}), FormatError, "lacks files"),
        (lambda hub: _commit(hub, {"adapter_graph.json": None}), FormatError, "neither a bundle nor an adapter"),
        (lambda hub: _commit(hub, {"../evil.json": b"{}"}), FormatError, "a path that may leave its folder"),
    ],
    ids=["gone", "gated", "503", "403", "418", "changed", "a file less", "no head", "up"],
)
def test_incomplete_downloads_leave_no_files(
    change: Callable[[HubServer], object], error: type, words: str, hub: HubServer, adapter: Path, cache: Path
) -> None:
    _push(adapter, "hf://me/one")
    change(hub)
    with pytest.raises(error, match=words) as raised:
        fetch("hf://me/one")
    codes = {NotFoundError: 8, DeniedError: 9, UnreachableError: 7}
    assert raised.value.exit_code == codes.get(error, 3)
    assert _none_left(cache)


def _commit(hub: HubServer, files: dict[str, bytes | None]) -> None:
    hub.repositories["me/one"].commit("main", files)


def test_a_token_is_needed_to_push(hub: HubServer, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    hub.repositories["me/one"] = Repository()
    with pytest.raises(AdapterExportError, match="hf auth login"):
        _push(adapter, "hf://me/one")


def test_a_hub_that_is_gone_is_named(adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    for run in (lambda: fetch("hf://me/one"), lambda: _push(adapter, "hf://me/one")):
        with pytest.raises(UnreachableError, match="the hub does not respond"):
            run()


def test_damaged_adapters_are_not_pushed(hub: HubServer, adapter: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapter, tmp_path / "copy")
    (copy / "weights.safetensors").write_bytes((copy / "weights.safetensors").read_bytes()[:-1])
    with pytest.raises(FormatError):
        _push(copy, "hf://me/one")
    assert not hub.repositories
