"""The C++ client finds adapters that are applied in part, where rounding in 8 bits hides that from golden vectors."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import build_bundle, in_precision
from clients import Client, last_line
from once import once
from small_bundle import build_small, make_adapter
from tampering import edit_adapter, rehash

from adapter_export.format.manifest import GRAPH_VARIANTS, GoldenRecord, Manifest
from adapter_export.format.manifest_json import read_manifest
from adapter_export.format.tensors import read_tensors, write_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner

NAMES = ("input_ids", "attention_mask")
SHAPES = ({"batch": 1, "tokens": 33}, {"batch": 3, "tokens": 7})
SITE = "layers.1.attention"
GRAPHS = ("slots", "slots, fed", "inputs", "bank", "fanout", "baked")

VERIFY_IN_C = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
bundle, findings, error = ctypes.c_void_p(), ctypes.c_char_p(), ctypes.c_char_p()
folder = sys.argv[2].encode()
assert library.ae_open(folder, 1, ctypes.c_uint64(0), ctypes.byref(bundle), ctypes.byref(error)) == 0, error.value
print(library.ae_verify(bundle, ctypes.byref(findings), ctypes.byref(error)))
print(findings.value.decode(), error.value.decode(), sep="\\n")
"""


@pytest.fixture(scope="module")
def coarse_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small base in 8 bits in every variant, with adapters whose answers are their outputs."""

    def make(folder: Path) -> None:
        exact = build_small(folder, ["slots"], NAMES)
        base = in_precision(exact.base, "int8", folder)
        adapters = [
            make_adapter("topic", "houlsby", "gelu", 3, base),
            make_adapter("tone", "pfeiffer", "relu", 2, base),
        ]
        build_bundle(
            base,
            [_without_task(adapter) for adapter in adapters],
            folder / "coarse",
            references=CutRunner(open_onnx(exact.model)),
            cases=input_cases(base.inputs, seed=1, shapes=list(SHAPES)),
            variants=list(GRAPH_VARIANTS),
            bake=["topic"],
        )

    return once(tmp_path_factory, "coarse", make) / "coarse"


def _without_task(adapter: Adapter) -> Adapter:
    assert adapter.head is not None
    return replace(adapter, head=replace(adapter.head, task=None))


@pytest.fixture
def bundle(coarse_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(coarse_bundle, tmp_path / "bundle")


def _of(findings: list[dict[str, Any]], variant: str) -> list[dict[str, Any]]:
    return [finding for finding in findings if finding["variant"] == variant]


def _switch_off(tensors: dict[str, np.ndarray]) -> None:
    """Fill the slots of one site with their neutral values: the site adds nothing."""
    ours = [name for name in tensors if f".{SITE}." in name and tensors[name].any()]
    assert ours
    for name in ours:
        tensors[name][...] = 0


def test_right_adapters_pass_in_every_graph(cpp_client: Client, coarse_bundle: Path) -> None:
    findings = cpp_client.verify(coarse_bundle)
    parts = _of(findings, "parts")
    names = [one.name for one in read_manifest(coarse_bundle).adapters if one.golden.parts is not None]
    assert "topic" in names
    expected = {(graph, name) for graph in GRAPHS for name in names if graph != "baked" or name == "topic"}
    assert {(one["graph"], one["adapter"]) for one in parts} == expected
    assert all(0 < one["worst"] <= 1 and "faults" not in one for one in parts)


def test_an_adapter_without_a_site_is_found(cpp_client: Client, bundle: Path) -> None:
    """Golden vectors, golden batches and answers pass: budgets are as wide as rounding in 8 bits needs."""
    edit_adapter(bundle, "topic", _switch_off)
    cpp_client.refuses("adapter `topic`: golden parts differ", "verify", bundle)
    cpp_client.refuses(f"`{SITE} off` in `slots`", "verify", bundle)
    done = cpp_client.call("verify", bundle, "--json")
    findings = json.loads(done.stdout)
    wrong = [one for one in findings if one["worst"] is None or one["worst"] > 1]
    # the bank and the baked graph have tensors of their own, which are right
    assert {(one["variant"], one["graph"]) for one in wrong} == {("parts", graph) for graph in GRAPHS[:3]}
    assert {one["adapter"] for one in wrong} == {"topic"}
    for one in wrong:
        assert one["faults"][0]["name"] == f"{SITE} off"
        value, limit = map(float, one["faults"][0]["fault"].split(" of ±"))
        assert value == pytest.approx(1, abs=0.2)
        assert limit < value
    assert re.search(rf"parts +topic in inputs .* as with `{SITE} off`", cpp_client.call("verify", bundle).stdout)


def test_the_c_interface_names_the_site(cpp_build: Path, bundle: Path) -> None:
    """In a process of its own: ONNX Runtime's package for Python has another release of the library."""
    edit_adapter(bundle, "topic", _switch_off)
    words = [sys.executable, "-c", VERIFY_IN_C, cpp_build / "libadapter_export_c.so", bundle]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=True, timeout=300)
    status, findings, error = done.stdout.splitlines()
    assert int(status) == 2
    assert {one["graph"] for one in json.loads(findings) if one.get("faults")} == set(GRAPHS[:3])
    assert f"`{SITE} off` in `slots`" in error


def _edit_parts(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        record = next(one.golden.parts for one in read_manifest(bundle).adapters if one.name == "topic")
        assert record is not None
        tensors = {name: array.copy() for name, array in read_tensors(bundle / record.path).items()}
        change(tensors)
        (bundle / record.path).unlink()
        write_tensors(bundle / record.path, tensors)
        rehash(bundle)

    return edit


def _no_weights(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if name.endswith(".part.0")]:
        del tensors[name]


def _other_weights(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if name.endswith(".part.0")]:
        tensors[name] = tensors[name].astype(np.int32)


def _nan(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if ".output." in name]:
        tensors[name][...] = np.nan


def _other_key(bundle: Path) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text("utf-8"))
    next(one for one in document["adapters"] if one["name"] == "topic")["golden"]["parts"]["parts"][0]["unknown"] = 1
    del document["checksum"]
    path.write_text(json.dumps(document), "utf-8")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_edit_parts(_no_weights), "has no weights of part 0"),
        (_edit_parts(_other_weights), "is not int8 of the shape of its output"),
        (_edit_parts(_nan), "golden parts differ"),
        (_other_key, "a key that this client does not know; found `unknown`"),
    ],
)
def test_golden_parts_that_prove_nothing_are_refused(
    cpp_client: Client, bundle: Path, edit: Callable[[Path], None], words: str
) -> None:
    edit(bundle)
    cpp_client.refuses(words, "verify", bundle)


@pytest.fixture
def recorded_elsewhere(bundle: Path) -> Path:
    """A bundle whose runs were recorded with a release of ONNX Runtime that cannot run it."""
    rehash(bundle, lambda manifest: _recorded_with(manifest, "1.2.3"))
    return bundle


def _recorded_with(manifest: Manifest, version: str) -> Manifest:
    assert manifest.recorded is not None
    return replace(manifest, recorded=replace(manifest.recorded, runtime=version))


def test_recorded_runs_of_another_runtime_are_not_compared(cpp_client: Client, recorded_elsewhere: Path) -> None:
    found = _of(cpp_client.verify(recorded_elsewhere), "recorded")
    assert [one["graph"] for one in found] == list(GRAPHS)
    assert all((one["adapter"], one["compared"], one["worst"]) == (None, False, 0) for one in found)
    assert all(one["reason"].startswith("recorded with onnxruntime 1.2.3, CPUExecutionProvider") for one in found)


def test_recorded_runs_of_this_runtime_are_compared(
    cpp_client: Client, recorded_elsewhere: Path, tmp_path: Path
) -> None:
    """Digests are made from what the client prints for the recorded case, and compared where the base has its own."""
    bundle = recorded_elsewhere
    reason = _of(cpp_client.verify(bundle), "recorded")[0]["reason"]
    version = reason.split("this is ")[1].split(",")[0]
    manifest = read_manifest(bundle)
    records: dict[str | None, GoldenRecord] = {None: manifest.golden}
    records |= {one.name: one.golden for one in manifest.adapters}
    digests = {name: _digest(cpp_client, bundle, manifest, name, records[name], tmp_path) for name in records}

    def renewed(record: GoldenRecord, name: str | None) -> GoldenRecord:
        return replace(record, recorded={"slots": digests[name], "inputs": "0" * 64})

    def renew(manifest: Manifest) -> Manifest:
        return replace(
            _recorded_with(manifest, version),
            golden=renewed(manifest.golden, None),
            adapters=tuple(replace(one, golden=renewed(one.golden, one.name)) for one in manifest.adapters),
        )

    rehash(bundle, renew)
    found = {(one["graph"], one["adapter"]): one for one in _of(cpp_client.verify(bundle), "recorded")}
    compared = [key for key, one in found.items() if one["compared"]]
    assert set(compared) == {(graph, name) for graph in GRAPHS[:2] for name in records}
    assert all(found[key]["worst"] == 0 for key in compared)
    apart = {graph: one["reason"] for (graph, _), one in found.items() if not one["compared"]}
    no_digest = dict.fromkeys(("bank", "fanout", "baked"), "its bits depend on the number of threads")
    other = "the base's bits differ here: another processor, or another build of ONNX Runtime"
    assert apart == {"inputs": other, **no_digest}

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensor = next(tensors[name] for name in sorted(tensors) if f".{SITE}." in name and tensors[name].ndim == 2)
        tensor.flat[0] *= np.float32(1.01)

    edit_adapter(bundle, "topic", change)
    findings = json.loads(cpp_client.call("verify", bundle, "--json").stdout)
    wrong = [one for one in findings if one["worst"] is None]
    assert {(one["variant"], one["graph"], one["adapter"]) for one in wrong} == {
        ("recorded", graph, "topic") for graph in GRAPHS[:2]
    }
    assert all(one["worst"] is None or one["worst"] <= 1 for one in findings)
    done = cpp_client.call("verify", bundle)
    assert done.returncode == 1
    assert "adapter `topic`: bits differ from the build's" in last_line(done)
    assert re.search(r"recorded +topic in slots +other bits than recorded", done.stdout)
    assert re.search(r"recorded +tone in slots +bit for bit as recorded", done.stdout)


def _digest(
    client: Client, bundle: Path, manifest: Manifest, name: str | None, record: GoldenRecord, folder: Path
) -> str:
    """The sha256 of the outputs of the base or an adapter as the client prints them, which is every digit."""
    assert manifest.recorded is not None
    vectors, digest = read_tensors(bundle / record.path), hashlib.sha256()
    for case in manifest.recorded.cases:
        inputs = {one.name: vectors[f"{case}.input.{one.name}"].tolist() for one in manifest.inputs}
        (folder / "inputs.json").write_text(json.dumps(inputs))
        rows = client.run(bundle, folder / "inputs.json", *([] if name is None else ["--adapter", name]))
        for output in sorted(record.absolute):
            printed = np.array([row["outputs"][output] for row in rows], np.float32)
            digest.update(printed.tobytes())
    return digest.hexdigest()
