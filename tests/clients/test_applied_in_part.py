"""Clients in JavaScript notice an adapter that is applied in part where golden vectors are too wide to show it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from building import build_bundle, in_precision
from clients import Client, last_line
from once import once
from tampering import edit, edit_adapter, rehash
from tiny_onnx import random_adapter, save_tiny

from adapter_export.format.manifest import GRAPH_VARIANTS, GoldenRecord, Manifest
from adapter_export.format.manifest_json import read_manifest
from adapter_export.graph.kinds import houlsby, lora
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner

SHAPES = ({"batch": 1, "tokens": 3}, {"batch": 1, "tokens": 33}, {"batch": 3, "tokens": 7})
UNIFORM = ("inputs", "bank", "fanout")
HERE = ("node_client", "browser_client")


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in 8 bits with the adapters `a` and `b`, in every graph; not to be changed."""

    def make(folder: Path) -> None:
        base = in_precision(open_onnx(save_tiny(folder)), "int8", folder)
        build_bundle(
            base,
            [
                random_adapter("a", houlsby(), base, bottleneck=4, labels="xy"),
                random_adapter("b", lora(), base, labels="xyz"),
            ],
            folder / "bundle",
            references=CutRunner(base),
            cases=input_cases(base.inputs, seed=0, shapes=list(SHAPES)),
            variants=list(GRAPH_VARIANTS),
            bake=["a"],
        )

    return once(tmp_path_factory, "eight_bits", make) / "bundle"


@pytest.fixture
def copy(eight_bits: Path, tmp_path: Path) -> Path:
    return shutil.copytree(eight_bits, tmp_path / "bundle")


@pytest.fixture
def recorded_here(node_client: Client, copy: Path) -> Path:
    """A copy whose runs in `inputs` and `bank` were recorded with the ONNX Runtime of Node."""
    node, program = node_client.command
    script = replace(node_client.alone(), command=(node, str(Path(__file__).with_name("digests.mjs"))))
    done = script.call(Path(program).parent, copy)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    def record(manifest: Manifest) -> Manifest:
        assert manifest.recorded is not None
        by_graph = {graph: found[graph] for graph in ("inputs", "bank")}
        changed = _with_recorded(manifest, lambda name: {graph: by_graph[graph][name or ""] for graph in by_graph})
        return replace(changed, recorded=replace(manifest.recorded, runtime=found["version"]))

    rehash(copy, record)
    return copy


def _with_recorded(manifest: Manifest, digests: Callable[[str | None], Mapping[str, str]]) -> Manifest:
    def changed(golden: GoldenRecord, name: str | None) -> GoldenRecord:
        return replace(golden, recorded=digests(name))

    adapters = tuple(replace(one, golden=changed(one.golden, one.name)) for one in manifest.adapters)
    return replace(manifest, golden=changed(manifest.golden, None), adapters=adapters)


def _of(findings: list[dict[str, Any]], variant: str) -> dict[tuple[str | None, str | None], dict[str, Any]]:
    """Return the findings of a variant by graph and adapter."""
    return {(each.get("graph"), each["adapter"]): each for each in findings if each["variant"] == variant}


def _failing(client: Client, bundle: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the findings that did not pass, and the error."""
    done = client.call("verify", bundle, "--json")
    assert done.returncode == 1, done.stdout
    return [each for each in json.loads(done.stdout) if not each["passed"]], last_line(done)


def _turn_off(bundle: Path, adapter: str, site: str) -> None:
    """Give the slots of a site their neutral values, in both files of an adapter."""
    slots = [slot for slot in read_manifest(bundle).slots if slot.site == site]

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors |= {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in slots}

    edit_adapter(bundle, adapter, change)


def _turn_off_in_bank(bundle: Path, adapter: str, site: str) -> None:
    """Give the slots of a site their neutral values in the row of the bank that has an adapter."""
    manifest = read_manifest(bundle)
    assert manifest.bank is not None
    slots = {slot.name: slot for slot in manifest.slots if slot.site == site}
    stored = {
        each.name: each
        for each in onnx.load(bundle / manifest.graphs["bank"], load_external_data=False).graph.initializer
    }
    for tensor in manifest.bank.tensors:
        if tensor.slot in slots:
            place = {entry.key: entry.value for entry in stored[tensor.name].external_data}
            shape, offset = tuple(stored[tensor.name].dims), int(place.get("offset", 0))
            rows = np.memmap(bundle / place["location"], np.float32, "r+", offset, shape)
            rows[manifest.bank.rows.index(adapter)] = slots[tensor.slot].neutral_value
            rows.flush()
    rehash(bundle)


def _nudge(bundle: Path, adapter: str) -> None:
    """Change one number of an adapter by less than golden vectors and golden parts can tell."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["adapter.layers.1.ffn.up.weight"].flat[0] += np.float32(1e-4)

    edit_adapter(bundle, adapter, change)


@pytest.mark.parametrize("client", HERE, indirect=True)
def test_a_right_bundle_passes(client: Client, eight_bits: Path) -> None:
    findings = client.verify(eight_bits)
    parts = _of(findings, "parts")
    assert set(parts) == {("baked", "a"), *((graph, name) for graph in UNIFORM for name in "ab")}
    assert all(each["passed"] and each["worst"] <= 1 and not each["faults"] for each in parts.values())
    recorded = _of(findings, "recorded")
    assert recorded
    assert all(each["passed"] for each in recorded.values())
    apart = [each["reason"] for each in recorded.values() if not each["compared"]]
    if "CHROMIUM" in client.environment:
        (reason,) = apart
        assert reason.startswith("recorded with onnxruntime ")
        assert reason.endswith(", wasm")
    assert len(apart) < 2, "only where the base rounds otherwise"


@pytest.mark.parametrize("client", HERE, indirect=True)
def test_a_site_that_is_off_is_named(client: Client, copy: Path) -> None:
    """Golden vectors do not show it. The bank and the baked graph have tensors of their own."""
    _turn_off(copy, "a", "layers.1.attention")
    (found,), error = _failing(client, copy)
    assert (found["variant"], found["graph"], found["adapter"]) == ("parts", "inputs", "a")
    assert found["worst"] > 1
    assert found["faults"][0]["name"] == "layers.1.attention off"
    assert "a: golden parts differ" in error
    assert "`layers.1.attention off` in `inputs`" in error


def test_a_site_that_is_off_in_the_bank_is_named(node_client: Client, copy: Path) -> None:
    """`fanout` has the tensors of the bank. Golden vectors do not show it."""
    _turn_off_in_bank(copy, "a", "layers.1.ffn")
    failing, error = _failing(node_client, copy)
    assert [(each["variant"], each["graph"], each["adapter"]) for each in failing] == [
        ("parts", "bank", "a"),
        ("parts", "fanout", "a"),
    ]
    assert {each["faults"][0]["name"] for each in failing} == {"layers.1.ffn off"}
    assert "`layers.1.ffn off` in `bank`" in error


def test_a_part_without_weights_is_refused(node_client: Client, copy: Path) -> None:
    """It would pass in any graph."""
    (record,) = [one.golden.parts for one in read_manifest(copy).adapters if one.name == "a"]
    assert record is not None
    at = [part.fault for part in record.parts].index("layers.1.ffn off")

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.endswith(f".part.{at}")]:
            del tensors[name]

    edit(copy / record.path, change)
    rehash(copy)
    node_client.refuses("has no weights for `layers.1.ffn off`", "verify", copy)


def test_comparable_recorded_runs_are_compared(node_client: Client, recorded_here: Path) -> None:
    found = _of(node_client.verify(recorded_here), "recorded")
    compared = {(graph, name) for graph in ("inputs", "bank") for name in (None, "a", "b")}
    assert {key for key, each in found.items() if each["compared"]} == compared
    assert {key: each["reason"] for key, each in found.items() if not each["compared"]} == {
        ("fanout", None): "its bits depend on the number of threads",
        ("baked", "a"): "its bits depend on the number of threads",
    }


def test_recorded_runs_show_another_number(node_client: Client, recorded_here: Path) -> None:
    _nudge(recorded_here, "a")
    (found,), error = _failing(node_client, recorded_here)
    assert (found["variant"], found["graph"], found["adapter"]) == ("recorded", "inputs", "a")
    assert found["compared"] is True
    assert "a in `inputs`: recorded runs differ" in error


def test_recorded_runs_are_skipped_if_the_base_differs(node_client: Client, recorded_here: Path) -> None:
    """The base is the witness of its graph: elsewhere it is compared."""

    def other(manifest: Manifest) -> Manifest:
        golden = replace(manifest.golden, recorded={**manifest.golden.recorded, "inputs": "0" * 64})
        return replace(manifest, golden=golden)

    rehash(recorded_here, other)
    _nudge(recorded_here, "a")
    found = _of(node_client.verify(recorded_here), "recorded")
    reason = "the base's bits differ here: another processor, or another build of ONNX Runtime"
    assert {key: each["reason"] for key, each in found.items() if not each["compared"]} == {
        ("inputs", None): reason,
        ("fanout", None): "its bits depend on the number of threads",
        ("baked", None): reason,
    }
    assert all(found["bank", name]["compared"] for name in (None, "a", "b"))
