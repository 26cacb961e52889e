"""Resources are opened once: every hash, read of a graph, session and analysis is counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from small_bundle import Built, build_small

from adapter_export.bundle import bundle_reader
from adapter_export.bundle.change import add_adapters
from adapter_export.bundle.proof.proof_plan import plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.manifest import FileRecord
from adapter_export.onnx_backend.base import flow
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime import bundle
from adapter_export.safe_io import shared_copies


class Counts:
    """Counts real calls; files by name, sessions with their levels, models in memory as `memory`.

    Attributes:
        hashed: hashed files, and other bytes by their hash.
        read: graphs that were read.
        opened: opened sessions, by graph and level.
        analysed: number of analysed graphs.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.hashed: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.opened: Counter[tuple[str, str]] = Counter()
        self.analysed = 0
        self._opening: Path | None = None
        self._wrap(patch, hashlib, "file_digest", lambda file, _: self.hashed.update([Path(file.name).name]))
        self._wrap(patch, shared_copies, "copy_hashed", lambda path, *_: self.hashed.update([path.name]))
        self._wrap(patch, bundle_reader, "read_model", lambda path, _: self.read.update([Path(path).name]))
        self._wrap(patch, bundle, "open_session", self._open_graph)
        self._wrap(patch, ort, "InferenceSession", self._session)
        self._wrap(patch, flow, "FlowGraph", self._analysis)
        self._sha256(patch)

    def _wrap(self, patch: pytest.MonkeyPatch, module: Any, name: str, count: Callable[..., object]) -> None:
        real = getattr(module, name)

        def counted(*args: Any, **settings: Any) -> Any:
            count(*args, **settings)
            return real(*args, **settings)

        patch.setattr(module, name, counted)

    def _open_graph(self, *_: object, where: Path, **__: object) -> None:
        self._opening = where

    def _session(self, _: str | bytes, options: ort.SessionOptions, **__: object) -> None:
        level = options.graph_optimization_level.name.removeprefix("ORT_")
        self.opened["memory" if self._opening is None else self._opening.name, level] += 1
        self._opening = None

    def _analysis(self, *_: object, **__: object) -> None:
        self.analysed += 1

    def _sha256(self, patch: pytest.MonkeyPatch) -> None:
        real = hashlib.sha256

        def counted(data: bytes = b"") -> Any:
            found = real(data)
            self.hashed[found.hexdigest()] += 1
            return found

        patch.setattr(hashlib, "sha256", counted)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return Counts(monkeypatch)


GRAPHS = ("model.onnx", "model.inputs.onnx", "model.bank.onnx")
ONE_SESSION_EACH = {(file, "ENABLE_ALL"): 1 for file in GRAPHS}
WHEN_MADE = {**ONE_SESSION_EACH, **{(file, "ENABLE_ALL"): 3 for file in ("model.onnx", "model.bank.onnx")}}
"""Including sessions with other thread counts, whose bits must agree to be recorded."""


def names(files: Iterable[FileRecord]) -> Counter[str]:
    return Counter(Path(file.path).name for file in files)


def check_hashes(counts: Counts, files: Sequence[FileRecord]) -> None:
    """Each file is hashed once; an adapter's weights also by its reader, for the digest in the adapter."""
    assert {name: count for name, count in counts.hashed.items() if name in names(files)} == names(files)
    again = {file.path: counts.hashed[file.sha256] for file in files if file.sha256 in counts.hashed}
    assert again == {file.path: 1 for file in files if file.path.endswith("weights.safetensors")}


def test_a_check_opens_each_graph_once_a_level(built: Built, counts: Counts) -> None:
    assert prove(plan_check(built.folder), None).passed
    check_hashes(counts, built.manifest.files)
    assert counts.read == dict.fromkeys(GRAPHS, 1)
    assert counts.opened == {
        ("model.onnx", "DISABLE_ALL"): 1,
        ("model.onnx", "ENABLE_BASIC"): 1,
        **ONE_SESSION_EACH,
        ("memory", "DISABLE_ALL"): 1,  # the graph that exposes the values at each site
    }
    assert counts.analysed == 1


def test_a_verification_opens_each_graph_once(built: Built, counts: Counts) -> None:
    assert prove(plan_check(built.folder, quick=True), None).passed
    check_hashes(counts, built.manifest.files)
    assert counts.read == dict.fromkeys(GRAPHS, 1)
    assert counts.opened == ONE_SESSION_EACH
    assert counts.analysed == 0


def test_a_build_analyses_each_graph_once(tmp_path: Path, counts: Counts) -> None:
    built = build_small(tmp_path)
    files = names(built.manifest.files)
    assert {name: count for name, count in counts.hashed.items() if name in files} == files
    assert {file: counts.read[file] for file in GRAPHS} == dict.fromkeys(GRAPHS, 1)
    assert {key: count for key, count in counts.opened.items() if key[0] in GRAPHS} == WHEN_MADE
    assert counts.analysed == 2, "the base when opened, and the graph with slots"


def test_changes_hash_only_new_files(copy: Path, built: Built, counts: Counts) -> None:
    adapter = replace(read_adapter(copy / "adapters/mood"), name="again")
    counts.hashed.clear()
    after = add_adapters(copy, [adapter], references=CutRunner(built.base))
    before = {file.path: file.sha256 for file in built.manifest.files}
    new = [file for file in after.files if before.get(file.path) != file.sha256 or "bank" in file.path]
    wanted = names(built.manifest.files) + names(new)
    assert {name: count for name, count in counts.hashed.items() if name in wanted} == wanted
    assert {key: count for key, count in counts.opened.items() if key[0] in GRAPHS} == WHEN_MADE
