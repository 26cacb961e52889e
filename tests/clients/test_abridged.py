"""Clients compare sketches of wide outputs, and make inputs from seeds, as an independent program writes them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from abridged import abridge, edit_manifest, filled
from abridged_bundle import COLUMNS, SEED, SITE, add_parts, build_abridged
from clients import Client
from once import once
from tampering import edit, edit_adapter
from wide_bundle import build_wide

from adapter_export.format.manifest_json import read_manifest
from adapter_export.format.tensors import read_tensors

RECORD = {"axes": 2, "largest": 2, "columns": 3, "moduli": [5, 7]}
SKETCHES = {"logits": RECORD, "hidden": {"axes": 1, "largest": 0, "columns": 2, "moduli": [11]}}
SEEDS = {"features": SEED}
MIDDLE, WRONG = COLUMNS // 2, "does not compute what the reference computed"
CLIENTS = ("cpp_client", "node_client", "python_client")
"""One per implementation: the browser shares that of Node."""

Change = Callable[[np.ndarray], np.ndarray]
Document = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with full golden data; not to be changed."""
    return once(tmp_path_factory, "abridged", build_abridged) / "bundle"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "bundle")


def _of(findings: list[Document], *variants: str) -> list[Document]:
    return [each for each in findings if each["variant"] in variants]


@pytest.mark.parametrize("client", [*CLIENTS, "browser_client"], indirect=True)
def test_sketches_and_fills_pass_in_every_variant(client: Client, whole: Path, copy: Path) -> None:
    abridge(copy, SKETCHES, SEEDS)
    before, after = (_of(client.verify(bundle), *client.variants) for bundle in (whole, copy))
    assert [(each["variant"], each["adapter"], each["mixed"]) for each in before] == [
        (each["variant"], each["adapter"], each["mixed"]) for each in after
    ]
    assert all(0 < each["worst"] <= 1 for each in after if each["adapter"] is not None)
    assert all(each["worst"] <= 1 for each in after)  # ONNX Runtime computed the base's golden vectors, too


@pytest.mark.parametrize("client", [*CLIENTS, "browser_client"], indirect=True)
def test_sketches_of_the_package_pass(client: Client, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A bundle with a vocabulary of 6,000 words, as `build` writes it."""
    bundle = once(tmp_path_factory, "clients_wide", build_wide) / "bundle"
    assert set(read_manifest(bundle).sketches) == {"logits"}
    findings = client.verify(bundle)
    assert len(_of(findings, *client.variants)) >= 3
    assert all(each["worst"] <= 1 for each in findings)


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
def test_narrow_rows_repeat_their_smallest_number(client: Client, copy: Path) -> None:
    abridge(copy, {"hidden": {**RECORD, "largest": 20}}, SEEDS)
    assert all(each["worst"] <= 1 for each in client.verify(copy))


def _raise_middle(value: np.ndarray) -> np.ndarray:
    changed = value.copy()
    changed[..., value.shape[-1] // 2] += np.float32(0.01)
    return changed


def _swap_columns(value: np.ndarray) -> np.ndarray:
    """Swap the columns of the smallest and the median number of the last row."""
    changed, row = value.copy(), value.reshape(-1, value.shape[-1])[-1]
    low, middle = np.argsort(row)[[0, len(row) // 2]]
    changed[..., [low, middle]] = changed[..., [middle, low]]
    return changed


def _set_nan(value: np.ndarray) -> np.ndarray:
    changed = value.copy()
    changed[..., value.shape[-1] // 2] = np.nan
    return changed


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
@pytest.mark.parametrize("change", [_raise_middle, _swap_columns, _set_nan])
@pytest.mark.parametrize("output", ["logits", "hidden"])
def test_a_wrong_column_fails(client: Client, copy: Path, change: Change, output: str) -> None:
    abridge(copy, {output: SKETCHES[output]}, SEEDS, change)
    client.refuses(WRONG, "verify", copy)


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
def test_an_output_with_nan_fails(client: Client, copy: Path) -> None:
    abridge(copy, {"logits": RECORD}, SEEDS)
    _set_nan_in_unembedding(copy)
    done = client.call("verify", copy, "--json")
    assert done.returncode == 1
    findings = _of(json.loads(done.stdout), *client.variants)
    assert {each["variant"] for each in findings} == client.variants
    assert all(each["worst"] is None for each in findings)


def _set_nan_in_unembedding(bundle: Path) -> None:
    """Make one column of `logits` NaN in every graph."""
    graph = onnx.load(bundle / "model.onnx", load_external_data=False).graph
    (tensor,) = [one for one in graph.initializer if tuple(one.dims)[-1:] == (COLUMNS,)]
    place = {entry.key: entry.value for entry in tensor.external_data}
    weights = np.memmap(bundle / place["location"], np.float32, "r+", int(place.get("offset", 0)), tuple(tensor.dims))
    weights[0, MIDDLE] = np.nan
    weights.flush()
    edit_manifest(bundle)


def _set_fill(*numbers: int) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for key in [key for key in tensors if ".fill." in key]:
            tensors[key] = np.array(numbers, np.int64)

    return change


_SHAPE, _SEED = "has a shape out of range", "has a seed out of range"
_NO_FILL = "is not a seed followed by the shape of a float input"


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0, 2**40, 2**40, 16), _SHAPE),
        ((0, 2**32, 2**32, 1), _SHAPE),  # no elements modulo 2^64
        ((0, 3, -7, 16), _SHAPE),
        ((0, -3, -7, 16), _SHAPE),
        ((-1, 3, 7, 16), _SEED),
        ((2**32, 3, 7, 16), _SEED),
        ((0, 3, 7), _NO_FILL),
        ((), _NO_FILL),
    ],
)
def test_fills_out_of_range_are_refused(client: Client, copy: Path, numbers: tuple[int, ...], words: str) -> None:
    abridge(copy, {}, SEEDS)
    edit(copy / "golden/base.safetensors", _set_fill(*numbers))
    edit_manifest(copy)
    client.refuses(words, "verify", copy)


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
def test_integers_are_not_filled(client: Client, copy: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for key in [key for key in tensors if key.endswith(".input.input_ids")]:
            tensors[key.replace(".input.", ".fill.", 1)] = np.array([0, *tensors.pop(key).shape])

    edit(copy / "golden/base.safetensors", change)
    edit_manifest(copy)
    client.refuses(_NO_FILL, "verify", copy)


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
def test_another_seed_fails(client: Client, copy: Path) -> None:
    abridge(copy, {}, SEEDS)
    edit(copy / "golden/base.safetensors", _change_seed)
    edit_manifest(copy)
    client.refuses(WRONG, "verify", copy)


def _change_seed(tensors: dict[str, np.ndarray]) -> None:
    for fill in [fill for key, fill in tensors.items() if ".fill." in key]:
        fill[0] += 1


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
@pytest.mark.parametrize("record", [{**RECORD, "columns": 4}, {**RECORD, "columns": 2}, {**RECORD, "axes": 1}])
def test_golden_data_of_another_sketch_are_refused(client: Client, copy: Path, record: Document) -> None:
    abridge(copy, {"logits": RECORD}, SEEDS)
    edit_manifest(copy, lambda document: document.update(sketches={"logits": record}))
    client.refuses("is not the sketch that the manifest describes", "verify", copy)


@pytest.mark.parametrize("client", ["cpp_client", "node_client"], indirect=True)
@pytest.mark.parametrize(
    ("sketches", "words"),
    [
        ({"unknown": RECORD}, "fits no output of the base"),
        ({"adapter_logits": {**RECORD, "axes": 1}}, "fits no output of the base"),
        ({"logits": {**RECORD, "axes": 3}}, "fits no output of the base"),
        ({"logits": {**RECORD, "axes": 0}}, "has a size out of range"),
        ({"logits": {**RECORD, "largest": -1}}, "has a size out of range"),
        ({"logits": {**RECORD, "columns": 2**40}}, "has a size out of range"),
        ({"logits": {**RECORD, "columns": 1.5}}, "has a size out of range"),
        ({"logits": {**RECORD, "moduli": [0]}}, "has a size out of range"),
        ({"logits": {**RECORD, "moduli": [2**15, 2**15, 2**15]}}, "has a size out of range"),
        ({"logits": {**RECORD, "moduli": []}}, "has no sums"),
        ({"logits": {**RECORD, "rows": 1}}, "a key that this client does not know"),
    ],
)
def test_manifests_with_impossible_sketches_are_refused(
    client: Client, copy: Path, sketches: Document, words: str
) -> None:
    """The package refuses them for the client in Python."""
    edit_manifest(copy, lambda document: document.update(sketches=sketches))
    client.refuses(words, "verify", copy)


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
def test_golden_parts_weigh_sketches(client: Client, copy: Path) -> None:
    add_parts(copy, RECORD)
    abridge(copy, SKETCHES, SEEDS)
    parts = _of(client.verify(copy), "parts")
    assert parts
    assert all(each["worst"] < 0.1 for each in parts)
    slots = [slot for slot in read_manifest(copy).slots if slot.site == SITE]

    def switch_off(tensors: dict[str, np.ndarray]) -> None:
        tensors |= {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in slots}

    edit_adapter(copy, "a", switch_off)
    parts = {each["graph"]: each for each in _of(json.loads(client.call("verify", copy, "--json").stdout), "parts")}
    assert parts["inputs"]["faults"][0]["name"] == f"{SITE} off"
    assert parts["inputs"]["worst"] == pytest.approx(2, rel=0.1)  # a value of 1, a limit of 0.5
    assert parts["bank"]["worst"] < 0.1


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
def test_recorded_runs_cover_whole_outputs(client: Client, copy: Path, tmp_path: Path) -> None:
    """The digest of the base is made from what the client prints, every digit of it."""
    abridge(copy, SKETCHES, SEEDS)
    variant = "slots" if "slots" in client.variants else "bank"
    digest = _printed_digest(client, copy, tmp_path)

    def record(document: Document) -> None:
        document["golden"]["recorded"] = {variant: digest}
        for adapter in document["adapters"]:
            adapter["golden"]["recorded"] = {}

    edit_manifest(copy, record)
    first = _of(client.verify(copy), "recorded")[0]
    if not first["compared"] and "; this is " in first["reason"]:
        version = first["reason"].split("; this is ")[1].split(",")[0]
        edit_manifest(copy, lambda document: document["recorded"].update(runtime=version))
    compared = [each for each in _of(client.verify(copy), "recorded") if each["adapter"] is None and each["compared"]]
    assert {each["graph"].split(",")[0] for each in compared} == {variant}  # tensors may be fed, too


def _printed_digest(client: Client, bundle: Path, folder: Path) -> str:
    """Return the sha256 of the outputs of the base in the recorded case."""
    document = json.loads((bundle / "manifest.json").read_text("utf-8"))
    (case,) = document["recorded"]["cases"]
    vectors, digest = read_tensors(bundle / document["golden"]["path"]), hashlib.sha256()
    inputs = {name: vectors[f"{case}.input.{name}"] for name in ("input_ids", "attention_mask")}
    seed, *shape = vectors[f"{case}.fill.features"].tolist()
    inputs["features"] = filled(seed, tuple(shape))
    (folder / "inputs.json").write_text(json.dumps({name: array.tolist() for name, array in inputs.items()}))
    rows = client.run(bundle, folder / "inputs.json", "--adapter", "base")
    for output in sorted(document["golden"]["absolute"]):
        digest.update(np.array([row["outputs"][output] for row in rows], np.float32).tobytes())
    return digest.hexdigest()
