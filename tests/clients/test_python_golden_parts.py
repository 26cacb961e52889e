"""The Python client finds adapters that are applied in part where rounding in 8 bits hides that from vectors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import Client, last_line
from coarse_bundle import build_coarse
from once import once
from tampering import edit, edit_adapter, rehash

from adapter_export.format.manifest import GRAPH_VARIANTS, Manifest
from adapter_export.format.manifest_json import read_manifest

SITE = "layers.0.attention"
GRAPHS = ("slots", "inputs", "bank", "fanout")


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in 8 bits with the adapters `a` and `b`, in every graph; not to be changed."""

    return (
        once(tmp_path_factory, "python_coarse", partial(build_coarse, variants=list(GRAPH_VARIANTS), bake=["a"]))
        / "bundle"
    )


@pytest.fixture
def copy(coarse: Path, tmp_path: Path) -> Path:
    return shutil.copytree(coarse, tmp_path / "bundle")


def _of(findings: list[dict[str, Any]], variant: str) -> dict[tuple[str | None, str | None], dict[str, Any]]:
    """Return the findings of a variant by graph and adapter."""
    return {(each.get("graph"), each["adapter"]): each for each in findings if each["variant"] == variant}


def _failing(client: Client, bundle: Path) -> tuple[list[tuple[str, str | None]], str, list[dict[str, Any]]]:
    """Return the variants and graphs that did not pass, the error, and these findings."""
    done = client.call("verify", bundle, "--json")
    assert done.returncode == 1, done.stdout
    wrong = [each for each in json.loads(done.stdout) if not each["passed"]]
    return [(each["variant"], each.get("graph")) for each in wrong], last_line(done), wrong


def _turn_off(bundle: Path, adapter: str) -> None:
    """Give the slots of a site their neutral values, in both files of an adapter."""
    slots = [slot for slot in read_manifest(bundle).slots if slot.site == SITE]

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors |= {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in slots}

    edit_adapter(bundle, adapter, change)


def _nudge(bundle: Path, adapter: str) -> None:
    """Change one number of an adapter by less than golden vectors and golden parts can tell."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["adapter.layers.1.ffn.up.weight"].flat[0] += np.float32(1e-4)

    edit_adapter(bundle, adapter, change)


def _elsewhere(bundle: Path) -> None:
    """Say that runs were recorded with another runtime."""

    def other(manifest: Manifest) -> Manifest:
        assert manifest.recorded is not None
        return replace(manifest, recorded=replace(manifest.recorded, runtime="1.0.0"))

    rehash(bundle, other)


def test_a_right_bundle_passes_in_every_graph(python_client: Client, coarse: Path) -> None:
    findings = python_client.verify(coarse)
    parts, recorded = _of(findings, "parts"), _of(findings, "recorded")
    assert set(parts) == {("baked", "a"), *((graph, name) for graph in GRAPHS for name in "ab")}
    assert all(0 < each["worst"] <= 1 and each["faults"] == [] for each in parts.values())
    assert set(recorded) == {("baked", "a"), *((graph, name) for graph in GRAPHS for name in (None, "a", "b"))}
    assert all(each["compared"] and each["worst"] == 0 for each in recorded.values())


def test_a_site_that_is_off_passes_golden_vectors_and_is_named(python_client: Client, copy: Path) -> None:
    """The bank and the baked graph have tensors of their own, which are right."""
    _turn_off(copy, "a")
    _elsewhere(copy)
    failing, error, wrong = _failing(python_client, copy)
    assert failing == [("parts", "slots"), ("parts", "inputs")]
    assert all(each["worst"] > 1 and each["faults"][0]["name"] == f"{SITE} off" for each in wrong)
    assert "golden parts differ" in error
    assert f"`{SITE} off` in `slots`" in error
    assert "a in inputs" in python_client.call("verify", copy).stdout


def test_recorded_runs_show_one_changed_number(python_client: Client, copy: Path) -> None:
    _nudge(copy, "a")
    failing, error, wrong = _failing(python_client, copy)
    assert failing == [("recorded", "slots"), ("recorded", "inputs")]
    assert {(each["adapter"], each["worst"], each["compared"]) for each in wrong} == {("a", None, True)}
    assert "bits differ from the build's, although the base's are equal" in error


def test_recorded_runs_of_another_runtime_say_nothing(python_client: Client, copy: Path) -> None:
    _nudge(copy, "a")
    _elsewhere(copy)
    (found,) = _of(python_client.verify(copy), "recorded").values()
    assert found["compared"] is False
    assert found["reason"].startswith("recorded with onnxruntime 1.0.0, CPUExecutionProvider; this is ")


def test_a_base_with_other_bits_says_nothing(python_client: Client, copy: Path) -> None:
    """The base is the witness of its graph: elsewhere adapters are compared."""

    def other(manifest: Manifest) -> Manifest:
        golden = replace(manifest.golden, recorded={**manifest.golden.recorded, "inputs": "0" * 64})
        return replace(manifest, golden=golden)

    rehash(copy, other)
    found = _of(python_client.verify(copy), "recorded")
    (reason,) = {each["reason"] for each in found.values() if not each["compared"]}
    assert {key for key, each in found.items() if not each["compared"]} == {("inputs", None)}
    assert reason == "the base's bits differ here: another processor, or another build of ONNX Runtime"


@pytest.mark.parametrize("what", ["part", "output"])
def test_golden_parts_that_prove_nothing_are_refused(python_client: Client, copy: Path, what: str) -> None:
    """A part without weights would pass in any graph, and one that expects NaN in none."""
    record = next(one.golden.parts for one in read_manifest(copy).adapters if one.name == "a")
    assert record is not None

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.endswith(".part.0")]:
            if what == "part":
                del tensors[name]
        for name in [name for name in tensors if ".output." in name and what == "output"]:
            tensors[name][...] = np.nan

    edit(copy / record.path, change)
    rehash(copy)
    python_client.refuses("golden parts differ", "verify", copy)
