"""Adapters are added to and removed from a bundle; nothing else changes, even after errors."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from building import build_bundle
from heard import Heard
from tiny_onnx import random_adapter, save_tiny, token_inputs

from adapter_export.bundle.change import add_adapters, remove_adapters
from adapter_export.errors import (
    AbandonedFileWarning,
    AdapterError,
    BaseMismatchError,
    BaseModelError,
    BusyError,
    FileError,
    FormatError,
    HashError,
)
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import read_manifest, verify_files
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import BottleneckOptions, classification_head, houlsby, parallel, pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.safe_io.output import hold_lock


def _adapters(base: OnnxBase) -> dict[str, Adapter]:
    first = classification_head("first")
    made = [
        random_adapter("a", houlsby(), base, bottleneck=4, labels=["x", "y"]),
        random_adapter("b", parallel(), base, bottleneck=3, labels=["x", "y", "z"], head=first),
        random_adapter("c", houlsby(), base, bottleneck=8, labels=["p", "q", "r", "s"]),
    ]
    return {adapter.name: adapter for adapter in made}


def _build(base: OnnxBase, names: str, out: Path, variants: Sequence[str] | None = None) -> Path:
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 3, "tokens": 4}])
    adapters = [_adapters(base)[name] for name in names]
    graphs = {"bake": ["a"]} if variants is None else {"variants": variants}
    build_bundle(base, adapters, out, references=CutRunner(base), cases=cases, **graphs)
    return out


@pytest.fixture(scope="module")
def built(base: OnnxBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `a` and `b`; do not change it."""
    return _build(base, "ab", tmp_path_factory.mktemp("extend") / "bundle")


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "bundle")


def _state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return every file with its inode and its bytes, and verify that nothing is left beside the folder."""
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes()) for path in files}


def _add(base: OnnxBase, bundle: Path, *adapters: Adapter, **settings: object) -> Manifest:
    return add_adapters(bundle, adapters, references=CutRunner(base), **settings)  # type: ignore[arg-type]


def test_added_adapter_gives_the_bytes_of_a_new_build(
    base: OnnxBase, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Compare byte for byte: the widths of the bank grow, the slots are the same."""
    again = _build(base, "abc", tmp_path_factory.mktemp("whole") / "bundle")
    before = _state(bundle)
    after = _add(base, bundle, _adapters(base)["c"])
    assert [record.name for record in after.adapters] == ["a", "b", "c"]
    assert after.bank is not None
    assert after.bank.rows == (None, "a", "b", "c")
    assert read_manifest(bundle) == after == read_manifest(again)
    found = {name: data for name, (_, data) in _state(bundle).items()}
    assert found == {name: data for name, (_, data) in _state(again).items()}
    rewritten = {"manifest.json", "bank.bin", "model.bank.onnx", "golden/batches.json", "README.md"}
    same = {name for name, (inode, _) in _state(bundle).items() if before.get(name, (0, b""))[0] == inode}
    assert same == before.keys() - rewritten, "all other files are untouched, including the weights of the base"


def test_a_new_adapter_answers_in_the_bank_beside_the_others(base: OnnxBase, bundle: Path) -> None:
    adapter = _adapters(base)["c"]
    _add(base, bundle, adapter)
    inputs = token_inputs(4, 4, seed=1)
    session = ort.InferenceSession(bundle / "model.bank.onnx")
    found = session.run(["hidden", "logits"], {**inputs, "adapter_ids": np.array([3, 1])})
    expected = CutRunner(base).run(inputs, adapter)
    assert np.allclose(found[0][0], expected["hidden"][0], atol=1e-5)
    assert np.allclose(found[1][0], expected["logits"][0], atol=1e-5)


def test_removing_takes_every_trace_away(base: OnnxBase, bundle: Path, built: Path) -> None:
    _add(base, bundle, _adapters(base)["c"])
    remove_adapters(bundle, ["c"])
    assert {name: data for name, (_, data) in _state(bundle).items()} == {
        name: data for name, (_, data) in _state(built).items()
    }


def test_the_slots_of_a_removed_topology_stay_for_another_adapter(base: OnnxBase, bundle: Path) -> None:
    graph = (bundle / "model.onnx").read_bytes()
    remove_adapters(bundle, ["a"])
    assert not (bundle / "model.baked.a.onnx").exists()
    assert not (bundle / "adapters/a").exists()
    after = _add(base, bundle, _adapters(base)["a"])
    assert [record.name for record in after.adapters] == ["b", "a"]
    assert (bundle / "model.onnx").read_bytes() == graph


def test_a_bundle_without_a_bank_takes_adapters(base: OnnxBase, tmp_path: Path) -> None:
    bundle = _build(base, "a", tmp_path / "bundle", ["inputs"])
    after = _add(base, bundle, _adapters(base)["c"], replace(_adapters(base)["c"], name="d"))
    assert [record.name for record in after.adapters] == ["a", "c", "d"]
    assert sorted(after.graphs) == ["inputs", "slots"]


def test_open_sessions_keep_their_results_after_a_change(base: OnnxBase, bundle: Path) -> None:
    session = ort.InferenceSession(bundle / "model.bank.onnx")
    feeds = {**token_inputs(4, 4, seed=1), "adapter_ids": np.array([1, 2])}
    before = session.run(["hidden"], feeds)[0]
    _add(base, bundle, _adapters(base)["c"])
    assert np.array_equal(session.run(["hidden"], feeds)[0], before)


def test_a_change_that_another_one_overtakes_is_refused(base: OnnxBase, bundle: Path) -> None:
    """The adapter that was added first is kept."""
    adapter = _adapters(base)["c"]

    class Overtaking(Heard):
        def step(self, label: str, done: int = 0, total: int | None = None) -> None:
            super().step(label, done, total)
            if label.startswith("verifying the bundle"):
                _add(base, bundle, replace(adapter, name="first"))

    with pytest.raises(FileError, match="was changed by another process in the meantime"):
        _add(base, bundle, adapter, reporter=Overtaking())
    assert [record.name for record in read_manifest(bundle).adapters] == ["a", "b", "first"]
    verify_files(read_manifest(bundle), bundle)
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_two_writers_exclude_each_other(base: OnnxBase, bundle: Path) -> None:
    adapter, before = _adapters(base)["c"], _state(bundle)
    with hold_lock(bundle), ThreadPoolExecutor(1) as threads, pytest.raises(BusyError, match="by another process"):
        threads.submit(_add, base, bundle, adapter).result()
    assert _state(bundle) == before
    assert [record.name for record in _add(base, bundle, adapter).adapters] == ["a", "b", "c"]


def test_a_head_that_has_no_slots_is_refused(base: OnnxBase, tmp_path: Path) -> None:
    bundle = _build(base, "a", tmp_path / "bundle", [])
    before = _state(bundle)
    head = classification_head("first")
    with pytest.raises(AdapterError, match=r"no slots.*head"):
        _add(base, bundle, random_adapter("c", houlsby(), base, labels=["x", "y"], head=head))
    assert _state(bundle) == before


class TestRefused:
    """Errors leave every file unchanged, byte for byte and inode for inode."""

    @pytest.fixture(autouse=True)
    def _unchanged(self, bundle: Path) -> object:
        before = _state(bundle)
        yield
        assert _state(bundle) == before

    def _refused(self, base: OnnxBase, bundle: Path, adapter: Adapter, words: str, **settings: object) -> None:
        with pytest.raises(AdapterError, match=words):
            _add(base, bundle, adapter, **settings)

    def test_add_refuses_adapters_without_matching_slots(self, base: OnnxBase, bundle: Path) -> None:
        other, other_norm = houlsby(BottleneckOptions("tanh")), BottleneckOptions(norm_before=True)
        for kind in (other, pfeiffer(other_norm)):
            adapter = random_adapter("c", kind, base, bottleneck=4)
            self._refused(
                base, bundle, adapter, "slots that the exported graph does not have.*layers.0.*ebuild with this adapter"
            )

    def test_add_refuses_an_adapter_of_another_base(self, base: OnnxBase, bundle: Path) -> None:
        adapter = random_adapter("c", houlsby(), base, fingerprint="sha256:other")
        with pytest.raises(BaseMismatchError, match="sha256:other"):
            _add(base, bundle, adapter)

    @pytest.mark.parametrize("name", ["a", "A", "base"])
    def test_add_refuses_a_taken_name(self, base: OnnxBase, bundle: Path, name: str) -> None:
        self._refused(base, bundle, replace(_adapters(base)["c"], name=name), f"`{name}`")

    def test_add_refuses_adapters_of_equal_names(self, base: OnnxBase, bundle: Path) -> None:
        adapter = _adapters(base)["c"]
        with pytest.raises(AdapterError, match="`c`, `C`"):
            _add(base, bundle, adapter, replace(adapter, name="C"))

    def test_add_refuses_another_site_map(self, base: OnnxBase, bundle: Path) -> None:
        with pytest.raises(BaseModelError, match="a different site map"):
            _add(base, bundle, _adapters(base)["c"], site_map="sha256:map")

    def test_removing_all_adapters_or_an_unknown_one_is_refused(self, base: OnnxBase, bundle: Path) -> None:
        with pytest.raises(AdapterError, match="at least one adapter"):
            remove_adapters(bundle, ["a", "b"])
        with pytest.raises(AdapterError, match=r"`nobody`; expected one of `a`, `b`"):
            remove_adapters(bundle, ["nobody"])

    def test_add_refuses_a_damaged_bundle(self, base: OnnxBase, bundle: Path) -> None:
        path = bundle / "adapters/a.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(HashError):
            _add(base, bundle, _adapters(base)["c"])
        path.write_bytes(data)

    def test_a_reference_of_other_weights_is_seen(self, base: OnnxBase, bundle: Path, tmp_path_factory: object) -> None:
        """Compare the graph with the reference's results, not with itself."""
        from tiny_onnx import tiny_model

        folder = tmp_path_factory.mktemp("other")  # type: ignore[attr-defined]
        other = open_onnx(save_tiny(folder, tiny_model(seed=1)))
        with pytest.raises(Exception, match="the results of the exported graph differ from the reference"):
            _add(other, bundle, _adapters(base)["c"])


def test_a_bundle_whose_graph_says_nothing_of_its_slots_is_refused(base: OnnxBase, bundle: Path) -> None:
    import onnx

    from adapter_export.format.manifest_json import list_files, write_manifest

    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    for prop in list(model.metadata_props):
        if prop.key == "adapter_export.plan":
            model.metadata_props.remove(prop)
    onnx.save(model, bundle / "model.onnx")
    write_manifest(replace(read_manifest(bundle), files=list_files(bundle)), bundle)
    with pytest.raises(FormatError, match="valid slot plan"):
        _add(base, bundle, _adapters(base)["c"])


_KILLED = """
import os, signal, sys
from pathlib import Path
from adapter_export.safe_io import output
from adapter_export.bundle import change, write
from adapter_export.reporting import Reporter
bundle, step = Path(sys.argv[1]), sys.argv[2]
def tell(name):
    if name.startswith(step):
        os.kill(os.getpid(), signal.SIGKILL)
kept = write.write_manifest
def write_and_tell(manifest, folder):
    kept(manifest, folder)
    tell("manifest")
write.write_manifest = write_and_tell
exchange = output.exchange
def exchange_and_tell(one, other):
    done = exchange(one, other)
    tell("exchanged")
    return done
output.exchange = exchange_and_tell
class Telling(Reporter):
    def step(self, label, done=0, total=None):
        tell(label)
change.remove_adapters(bundle, ["a"], reporter=Telling())
"""


@pytest.mark.parametrize("step", ["manifest", "verifying the bundle against its golden"])
@pytest.mark.extended
def test_killed_changes_leave_the_bundle_unchanged(built: Path, bundle: Path, step: str) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(bundle), step], check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    assert read_manifest(bundle) == read_manifest(built)
    for path in built.rglob("*"):
        if path.is_file():
            assert (bundle / path.relative_to(built)).read_bytes() == path.read_bytes()
    assert read_tensors(bundle / "adapters/a.safetensors")


@pytest.mark.extended
def test_a_change_that_is_killed_after_the_exchange_is_made(built: Path, bundle: Path) -> None:
    """The old folder remains beside it, hidden, until the next command that writes there removes it."""
    done = subprocess.run([sys.executable, "-c", _KILLED, str(bundle), "exchanged"], check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    after = read_manifest(bundle)
    assert [record.name for record in after.adapters] == ["b"]
    verify_files(after, bundle)
    (left,) = bundle.parent.glob(".bundle.*.tmp")
    assert read_manifest(left) == read_manifest(built)
    with pytest.warns(AbandonedFileWarning, match=re.escape(str(left))), hold_lock(bundle):
        assert list(bundle.parent.glob(".*.tmp")) == []
    assert list(bundle.parent.iterdir()) == [bundle]
    assert read_manifest(bundle) == after
