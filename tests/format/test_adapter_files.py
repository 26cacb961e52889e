"""Adapter folders: round trips, and named faults with file and location."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heads import heads, with_head

from adapter_export.errors import (
    AdapterError,
    FileError,
    FormatError,
    GraphError,
    HashError,
    InputError,
    OutputExistsError,
    TensorError,
    VersionError,
)
from adapter_export.format.adapter_files import read_adapter, write_adapter
from adapter_export.format.tensors import read_tensors, tensor_bytes
from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.graph import AdapterGraph, Node

Document = dict[str, Any]
Change = Callable[[Document], object]


def assert_equal(found: Adapter, expected: Adapter) -> None:
    assert replace(found, weights=expected.weights) == expected
    assert list(found.placements) == list(expected.placements)
    assert found.weights.keys() == expected.weights.keys()
    for name, tensor in expected.weights.items():
        assert found.weights[name].tobytes() == tensor.tobytes()


def edit(folder: Path, change: Change) -> None:
    """Change the JSON as a person would, who then has to leave the checksum out."""
    path = folder / "adapter_graph.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document.pop("checksum", None)
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def put_weights(folder: Path, data: bytes) -> None:
    """Other weights, with the hash that belongs to them."""
    (folder / "weights.safetensors").write_bytes(data)
    edit(folder, lambda document: document["weights"].update(sha256=hashlib.sha256(data).hexdigest()))


def test_written_adapters_are_read_back_unchanged(adapter: Adapter, folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_graph.json", "weights.safetensors"]
    assert_equal(read_adapter(folder), adapter)


def test_writing_twice_gives_the_same_bytes(adapter: Adapter, folder: Path, tmp_path: Path) -> None:
    shuffled = replace(adapter, weights=dict(reversed(adapter.weights.items())))
    write_adapter(shuffled, tmp_path / "again")
    write_adapter(read_adapter(folder), tmp_path / "third")
    for name in ("adapter_graph.json", "weights.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "third" / name).read_bytes() == (folder / name).read_bytes()


def test_adapter_without_head_and_training_is_read_back(adapter: Adapter, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in adapter.weights.items() if not name.startswith("head.")}
    bare = replace(adapter, head=None, training={}, weights=weights)
    write_adapter(bare, tmp_path / "bare")
    assert_equal(read_adapter(tmp_path / "bare"), bare)


def test_adapter_with_only_a_head_is_read_back(adapter: Adapter, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in adapter.weights.items() if name.startswith("head.")}
    alone = replace(adapter, graphs={}, placements={}, weights=weights)
    write_adapter(alone, tmp_path / "alone")
    assert_equal(read_adapter(tmp_path / "alone"), alone)


def test_training_record_may_be_absent(adapter: Adapter, folder: Path) -> None:
    def strip(document: Document) -> None:
        del document["training"]

    edit(folder, strip)
    assert_equal(read_adapter(folder), replace(adapter, training={}))


def test_numbers_may_be_spelled_differently(adapter: Adapter, folder: Path) -> None:
    def respell(document: Document) -> None:
        document["sites"][0]["widths"]["b"] = 2.0
        nodes = next(iter(document["graphs"].values()))["nodes"]
        next(node for node in nodes if node["op"] == "scale")["attributes"]["factor"] = 5e-1

    edit(folder, respell)
    assert_equal(read_adapter(folder), adapter)
    assert type(read_adapter(folder).placements["layers.10.ffn"].widths["b"]) is int


def test_existing_folder_is_replaced_only_with_force(adapter: Adapter, folder: Path) -> None:
    before = (folder / "adapter_graph.json").read_bytes()
    with pytest.raises(OutputExistsError):
        write_adapter(replace(adapter, kind="other"), folder)
    assert (folder / "adapter_graph.json").read_bytes() == before
    write_adapter(replace(adapter, kind="other"), folder, force=True)
    assert read_adapter(folder).kind == "other"


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"kind": ""}, "$.kind"),
        ({"base": ""}, "$.base.fingerprint"),
        ({"training": {"loss": float("nan")}}, "no JSON equivalent"),
        ({"training": {"loss": np.float32(1)}}, "no JSON equivalent"),
    ],
)
def test_writer_refuses_unreadable_adapters(adapter: Adapter, tmp_path: Path, change: Document, place: str) -> None:
    with pytest.raises(FormatError) as caught:
        write_adapter(replace(adapter, **change), tmp_path / "out")
    assert place in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def graph_of(document: Document) -> Document:
    return next(iter(document["graphs"].values()))


def task_of(document: Document) -> Document:
    return document["head"]["task"]


def second(document: Document, version: str, change: Change = lambda _: None) -> None:
    document["version"] = version
    change(document)


BAD_JSON: dict[str, tuple[Change, type[InputError], str]] = {
    "no version": (lambda d: d.pop("version"), FormatError, "has no format version"),
    "version is a number": (lambda d: d.update(version=1), FormatError, "`1`"),
    "version is no semver": (lambda d: d.update(version="1.0"), FormatError, "`1.0`"),
    "newer major": (lambda d: d.update(version="2.0.0"), VersionError, "pip install --upgrade"),
    "older major": (lambda d: d.update(version="0.9.0"), VersionError, "0.9.0"),
    "newer minor, new key": (lambda d: d.update(version="1.7.0", extra=1), VersionError, "unknown key `extra`"),
    "newer minor, new op": (
        lambda d: second(d, "1.7.0", lambda d: graph_of(d)["nodes"][0].update(op="conv")),
        VersionError,
        "`conv`",
    ),
    "unknown key": (lambda d: d.update(extra=1), FormatError, "`$`: breaks the format"),
    "unknown key inside": (lambda d: graph_of(d)["nodes"][0].update(extra=1), FormatError, ".nodes[0]`"),
    "missing key": (lambda d: d.pop("base"), FormatError, "no key `base`"),
    "wrong type": (lambda d: d.update(name=3), FormatError, "`$.name`: breaks the format; found `3`"),
    "bad name": (lambda d: d.update(name="../up"), FormatError, "`$.name`"),
    "sites as an object": (lambda d: d.update(sites={}), FormatError, "`$.sites`"),
    "a site twice": (lambda d: d["sites"].append(d["sites"][0]), FormatError, "`$.sites[2]`: a site occurs twice"),
    "site with a space": (lambda d: d["sites"][0].update(site="a b"), FormatError, "`$.sites[0].site`"),
    "site called head": (lambda d: d["sites"][0].update(site="head"), AdapterError, "may not be called `head`"),
    "unknown graph": (lambda d: d["sites"][0].update(graph="none"), AdapterError, "none"),
    "width 0": (lambda d: d["sites"][0]["widths"].update(b=0), FormatError, "`$.sites[0].widths.b`"),
    "width 2.5": (lambda d: d["sites"][0]["widths"].update(b=2.5), FormatError, "found `2.5`"),
    "width true": (lambda d: d["sites"][0]["widths"].update(b=True), FormatError, "found `true`"),
    "width missing": (lambda d: d["sites"][0]["widths"].pop("b"), GraphError, "`b`"),
    "other width": (lambda d: d["sites"][0]["widths"].update(b=3), TensorError, "layers.10.ffn.down.weight"),
    "unknown op": (lambda d: graph_of(d)["nodes"][0].update(op="conv"), FormatError, "`conv`"),
    "op without its parameter": (
        lambda d: graph_of(d)["nodes"][0].pop("parameters"),
        GraphError,
        "graph `bottleneck_leaky_relu_norm_before`",
    ),
    "reads a later value": (lambda d: graph_of(d)["nodes"][0].update(inputs=["result"]), GraphError, "before it is"),
    "unknown result": (lambda d: graph_of(d).update(result="none"), GraphError, "`none`"),
    "a site graph that reads the mask": (lambda d: graph_of(d).update(inputs=["mask"]), FormatError, ".inputs[0]`"),
    "a head that reads h": (lambda d: d["head"]["graph"].update(inputs=["h"]), FormatError, "`$.head.graph.inputs[0]`"),
    "a result of another shape": (lambda d: graph_of(d).update(result="down"), GraphError, "never used"),
    "epsilon 0": (lambda d: graph_of(d)["nodes"][0]["attributes"].update(epsilon=0), FormatError, "epsilon`"),
    "too large a factor": (
        lambda d: graph_of(d)["nodes"][4]["attributes"].update(factor=10**400),
        FormatError,
        "factor",
    ),
    "replaces what is no site value": (lambda d: graph_of(d).update(replaces="x"), FormatError, ".replaces`"),
    "reads what comes later": (lambda d: graph_of(d).update(replaces="u"), GraphError, "computed after `u`"),
    "a head that replaces": (lambda d: d["head"]["graph"].update(replaces="y"), GraphError, "a head replaces nothing"),
    "shares what it has not": (lambda d: graph_of(d).update(shared=["gain"]), GraphError, "found gain"),
    "shares nothing": (lambda d: graph_of(d).update(shared=[]), FormatError, ".shared`"),
    "shares tensors of places": (
        lambda d: graph_of(d).update(shared=["up.bias"]),
        TensorError,
        "`shared.bottleneck_leaky_relu_norm_before.up.bias` is missing",
    ),
    "site called shared": (lambda d: d["sites"][0].update(site="shared"), AdapterError, "may not be called `shared`"),
    "an unknown problem type": (lambda d: task_of(d).update(type="guess"), FormatError, "`$.head.task.type`"),
    "a regression with labels": (lambda d: task_of(d).update(type="regression"), FormatError, "`$.head.task`"),
    "a classification without labels": (lambda d: task_of(d).pop("labels"), FormatError, "`$.head.task`"),
    "a task of another shape": (lambda d: task_of(d).update(type="token"), AdapterError, "wrong shape"),
    "no labels": (lambda d: task_of(d).update(labels=[]), FormatError, "`$.head.task`"),
    "a label twice": (lambda d: task_of(d).update(labels=["a", "a", "b"]), FormatError, "`$.head.task`"),
    "a label too few": (lambda d: task_of(d).update(labels=["a", "b"]), AdapterError, "2 labels"),
    "an activation of another type": (lambda d: task_of(d).update(activation="sigmoid"), FormatError, "`sigmoid`"),
    "a threshold above 1": (lambda d: task_of(d).update(thresholds=[1.5]), FormatError, "`$.head.task.thresholds[0]`"),
    "thresholds of one label": (lambda d: task_of(d).update(thresholds=[0.5]), FormatError, "1 threshold for 3"),
    "no tokens": (lambda d: task_of(d).update(max_tokens=0), FormatError, "`$.head.task.max_tokens`"),
    "no digest": (lambda d: task_of(d).update(tokenizer="x"), FormatError, "the digest of a tokenizer"),
    "a prefix of a class": (lambda d: task_of(d).update(prefix="query: "), FormatError, "only an embedding"),
    "training is a list": (lambda d: d.update(training=[]), FormatError, "`$.training`"),
    "other weights file": (lambda d: d["weights"].update(file="../w"), FormatError, "`$.weights.file`"),
    "hash in capitals": (lambda d: d["weights"].update(sha256="A" * 64), FormatError, "`$.weights.sha256`"),
    "hash of other weights": (lambda d: d["weights"].update(sha256="a" * 64), HashError, "weights.safetensors"),
}


@pytest.mark.parametrize(("change", "error", "place"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_reader_names_the_fault_in_the_json(folder: Path, change: Change, error: type[InputError], place: str) -> None:
    edit(folder, change)
    with pytest.raises(error) as caught:
        read_adapter(folder)
    assert str(folder) in str(caught.value)
    assert place in str(caught.value)


def test_a_newer_minor_version_that_holds_nothing_new_is_read(adapter: Adapter, folder: Path) -> None:
    edit(folder, lambda document: document.update(version="1.9.3"))
    assert_equal(read_adapter(folder), adapter)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "is not valid JSON"),
        (b"[]", "has no format version"),
        (b'{"version": "1.0.0", "version": "1.0.0"}', "the key `version` in one object"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"version": NaN}', "`NaN`"),
    ],
)
def test_invalid_adapter_documents_are_refused(folder: Path, data: bytes, found: str) -> None:
    (folder / "adapter_graph.json").write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_adapter(folder)
    assert found in str(caught.value)


def test_a_changed_number_is_seen(folder: Path) -> None:
    """A factor that is another number is still a valid adapter: only the checksum knows."""
    path = folder / "adapter_graph.json"
    text = path.read_text(encoding="utf-8")
    assert text.count('"factor": 0.5') == 1
    path.write_text(text.replace('"factor": 0.5', '"factor": 0.7'), encoding="utf-8")
    with pytest.raises(HashError, match="delete its key `checksum`"):
        read_adapter(folder)


def test_the_checksum_is_the_one_of_the_specification(folder: Path) -> None:
    data = (folder / "adapter_graph.json").read_bytes()
    digits = json.loads(data)["checksum"]
    assert hashlib.sha256(data.replace(digits.encode(), b"0" * 64)).hexdigest() == digits


def test_zeros_elsewhere_do_not_disturb_the_checksum(adapter: Adapter, tmp_path: Path) -> None:
    zeros = replace(adapter, training={"checksum": "0" * 64})
    write_adapter(zeros, tmp_path / "zeros")
    assert_equal(read_adapter(tmp_path / "zeros"), zeros)


def test_paths_without_an_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is not an adapter folder"):
        read_adapter(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="is not an adapter folder"):
        read_adapter(tmp_path / "file")


@pytest.mark.parametrize("name", ["adapter_graph.json", "weights.safetensors"])
def test_missing_file_of_an_adapter_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileError, match="Copy both files of the adapter") as caught:
        read_adapter(folder)
    assert caught.value.where == str(folder / name)


def test_damaged_weights_fail_their_hash(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(HashError) as caught:
        read_adapter(folder)
    assert caught.value.where == str(path)


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FormatError, match="not fully covered"):
        read_adapter(folder)


def test_git_lfs_pointers_are_refused_with_advice(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(FormatError, match="git lfs pull"):
        read_adapter(folder)


def test_all_faults_of_the_tensors_are_listed(folder: Path) -> None:
    tensors: dict[str, np.ndarray] = dict(read_tensors(folder / "weights.safetensors"))
    tensors["more"] = tensors.pop("head.classifier.bias")
    tensors["layers.10.ffn.down.weight"] = tensors["layers.10.ffn.down.weight"].T
    tensors["layers.2.ffn.up.bias"] = tensors["layers.2.ffn.up.bias"].astype(np.float64)
    tensors["layers.2.ffn.up.weight"][0, 0] = np.nan
    tensors["layers.2.ffn.down.bias"][0] = np.inf
    put_weights(folder, tensor_bytes(tensors))
    with pytest.raises(TensorError) as caught:
        read_adapter(folder)
    for fault in (
        "`head.classifier.bias` is missing",
        "`more` is left over",
        "`layers.10.ffn.down.weight` has shape [2, 8], not [8, 2]",
        "`layers.2.ffn.up.bias` is float64, not float32",
        "`layers.2.ffn.up.weight` holds 1 NaN or Inf",
        "`layers.2.ffn.down.bias` holds 1 NaN or Inf",
    ):
        assert fault in str(caught.value)
    assert str(folder) in str(caught.value)


def shifted(parameter: str) -> AdapterGraph:
    """`h + h @ W`, with a name of choice for W."""
    nodes = (Node("linear", ("h",), "y", {"weight": parameter}), Node("add", ("h", "y"), "result"))
    return AdapterGraph(("h",), {parameter: ("d", "d")}, nodes, "result")


def test_tensors_of_equal_names_are_refused(adapter: Adapter) -> None:
    """Site `a` with parameter `b.c` and site `a.b` with parameter `c` would share a tensor."""
    graphs = {"outer": shifted("b.c"), "inner": shifted("c")}
    placements = {"a": Placement("outer", {"d": 8}), "a.b": Placement("inner", {"d": 8})}
    with pytest.raises(AdapterError, match=r"two tensors have one name; found `a\.b\.c`"):
        replace(adapter, graphs=graphs, placements=placements)


@pytest.mark.parametrize("name", ["", "-a", "a/b", "a b", "..", "a\n", "ä"])
def test_invalid_adapter_names_are_refused(adapter: Adapter, name: str) -> None:
    with pytest.raises(AdapterError, match="no adapter may have"):
        replace(adapter, name=name)


@pytest.mark.parametrize("name", heads(8))
def test_heads_of_every_task_come_back(adapter: Adapter, tmp_path: Path, name: str) -> None:
    head = heads(8)[name]
    written = with_head(adapter, "a", head)
    write_adapter(written, tmp_path / "a")
    assert read_adapter(tmp_path / "a").head == head
    document = json.loads((tmp_path / "a/adapter_graph.json").read_text(encoding="utf-8"))
    assert document["head"]["task"] == head.task.document()
    assert ("labels" in document["head"]["task"]) == bool(head.labels)


def test_a_head_without_a_task_is_read_back(adapter: Adapter, tmp_path: Path) -> None:
    head = replace(heads(8)["topic"], task=None)
    write_adapter(with_head(adapter, "a", head), tmp_path / "a")
    found = read_adapter(tmp_path / "a").head
    assert found == head
    assert (found.output, found.labels) == ("logits", ())
