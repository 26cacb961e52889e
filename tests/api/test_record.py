"""Records of bases: they avoid opening, contain the same facts, and never belong to another model."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from shutil import copy

import numpy as np
import onnx
import pytest
from tiny_onnx import save_tiny

import adapter_export as ae
from adapter_export.bases.opening import recorded_base
from adapter_export.format.files import CACHE_VARIABLE, canonical_json


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for records."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "bases"


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    random, tensors = np.random.default_rng(0), {}
    for layer in range(2):
        for name, shape in {"down.weight": (32, 4), "down.bias": 4, "up.weight": (4, 32), "up.bias": 32}.items():
            tensors[f"layers.{layer}.ffn.{name}"] = random.normal(0, 0.2, shape).astype(np.float32)
    return tensors


def _pack(weights: dict[str, np.ndarray], base: ae.Base | Path) -> ae.Adapter:
    return ae.pack(weights, base, kind="pfeiffer", activation="relu", name="a")


def test_base_records_contain_the_facts_of_the_opened_base(
    cache: Path, tiny_bert_archive: Path, tmp_path: Path, weights: dict
) -> None:
    opened = ae.open_base(tiny_bert_archive)
    assert not cache.exists(), "only `recorded_base` reads or writes records"
    for _ in range(2):
        base = recorded_base(tiny_bert_archive)
        assert str(base.sites) == str(opened.sites)
        assert json.dumps(base.sites.to_json()) == json.dumps(opened.sites.to_json())
        assert json.dumps(ae.inspect(base).to_json()) == json.dumps(ae.inspect(opened).to_json())
        made, expected = (
            ae.save(_pack(weights, one), tmp_path / str(at), force=True) for at, one in enumerate((base, opened))
        )
        assert all((made / file.name).read_bytes() == file.read_bytes() for file in expected.iterdir())
    assert "model" not in vars(base), "the second one was not opened"
    assert base.model.fingerprint == opened.fingerprint


@pytest.mark.extended
def test_neither_torch_nor_onnx_is_loaded_where_a_record_is(cache: Path, tiny_bert_archive: Path) -> None:
    recorded_base(tiny_bert_archive)
    program = (
        "import sys; from adapter_export.cli.main import main; main(['sites', sys.argv[1], '--json'], "
        "standalone_mode=False); sys.exit(bool({'torch', 'onnx', 'onnxruntime'} & sys.modules.keys()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(tiny_bert_archive)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == json.loads(json.dumps(ae.open_base(tiny_bert_archive).sites.to_json()))


def test_other_weights_beside_a_graph_are_another_model(cache: Path, tmp_path: Path) -> None:
    graph = save_tiny(tmp_path)
    onnx.save_model(onnx.load(graph), graph, save_as_external_data=True, location="w.bin", size_threshold=0)
    before = recorded_base(graph).fingerprint
    assert recorded_base(graph).fingerprint == before
    data = bytearray((tmp_path / "w.bin").read_bytes())
    data[-1] ^= 1
    (tmp_path / "w.bin").write_bytes(data)
    assert recorded_base(graph).fingerprint == ae.open_base(graph).fingerprint != before


def test_damaged_records_are_ignored_and_rewritten(cache: Path, tmp_path: Path) -> None:
    graph = save_tiny(tmp_path)
    fingerprint = recorded_base(graph).fingerprint
    (record,) = cache.iterdir()
    whole = record.read_text()
    record.write_text(whole.replace(fingerprint, fingerprint[:-1] + "0"))
    assert recorded_base(graph).fingerprint == fingerprint
    assert record.read_text() == whole
    record.write_text(whole[:-9])
    assert recorded_base(graph).fingerprint == fingerprint


def test_a_model_that_changes_after_its_record_was_read_is_not_opened(
    cache: Path, tiny_bert_archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    copy(tiny_bert_archive, path)
    recorded_base(path)
    base = recorded_base(path)
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ae.errors.BaseModelError, match="was changed while it was in use"):
        _ = base.model


def test_build_refuses_a_base_behind_a_forged_record(
    cache: Path, tiny_bert_archive: Path, tmp_path: Path, weights: dict
) -> None:
    recorded_base(tiny_bert_archive)
    (path,) = cache.iterdir()
    record = json.loads(path.read_text())["record"]
    record["fingerprint"] = f"sha256:{'0' * 64}"
    for site in record["sites"]["sites"]:
        site["width"] = 16 if site["name"].endswith("ffn") else site["width"]
    path.write_text(json.dumps({"sha256": sha256(canonical_json(record)).hexdigest(), "record": record}))
    narrow = {
        name: tensor[..., :16] if name.endswith(("up.weight", "up.bias")) else tensor
        for name, tensor in weights.items()
    }
    axes = {"down.weight": np.s_[:16], "up.weight": np.s_[:, :16], "up.bias": np.s_[:16], "down.bias": np.s_[:]}
    narrow = {name: tensor[axes[name.split(".", 3)[3]]] for name, tensor in weights.items()}
    adapter = _pack(narrow, tiny_bert_archive)
    with pytest.raises(ae.errors.BaseMismatchError):
        ae.build(tiny_bert_archive, [adapter], tmp_path / "bundle")
    with pytest.raises(ae.errors.AdapterError):
        ae.build(tiny_bert_archive, [adapter], tmp_path / "bundle", allow_base_mismatch=True)


@pytest.mark.parametrize("folder", ["", "/proc/self/nowhere"], ids=["none", "not writable"])
def test_bases_are_opened_if_records_cannot_be_stored(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, folder)
    graph = save_tiny(tmp_path)
    assert recorded_base(graph).sites.names == recorded_base(graph).sites.names
    assert not (tmp_path / "bases").exists()
