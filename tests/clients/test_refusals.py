"""Every client reports faults of a bundle or a call with an exit code: one table for all clients."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import CLIENTS, Client, write_adapter_file
from safetensors.numpy import load_file

ADAPTER = "adapters/tone.onnx_adapter"

pytestmark = pytest.mark.parametrize("client", CLIENTS, indirect=True)


def _flip(bundle: Path) -> None:
    data = bytearray((bundle / ADAPTER).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / ADAPTER).write_bytes(data)


def _linked_out(name: str) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        outside = bundle.with_name("outside")
        (bundle / name).rename(outside)
        (bundle / name).symlink_to(outside)

    return damage


def _edited(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        path = bundle / "manifest.json"
        document = json.loads(path.read_text("utf-8"))
        change(document)
        document.pop("checksum", None)
        path.write_text(json.dumps(document), encoding="utf-8")

    return damage


def _other_golden_vectors(bundle: Path) -> None:
    """The last number of them another one, with a hash that is right."""
    name = "golden/tone.safetensors"
    data = (bundle / name).read_bytes()[:-4] + np.float32(1.0).tobytes()
    (bundle / name).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    _edited(lambda d: [file.update(sha256=digest) for file in d["files"] if file["path"] == name])(bundle)


MULTI_LABEL = {"type": "multi_label", "labels": ["a", "b"]}

DAMAGES = {
    "a flipped bit": (_flip, "changed or damaged"),
    "truncated": (lambda b: (b / ADAPTER).write_bytes((b / ADAPTER).read_bytes()[:-1]), "recorded size"),
    "oversized": (lambda b: (b / ADAPTER).write_bytes((b / ADAPTER).read_bytes() + b"0"), "recorded size"),
    "missing": (lambda b: (b / ADAPTER).unlink(), "is missing from the bundle"),
    "extra": (lambda b: (b / "adapters" / "more.bin").write_bytes(b"0"), "more.bin"),
    "link out of the folder": (_linked_out(ADAPTER), "a link to a file outside the"),
    "manifest that is a link": (_linked_out("manifest.json"), "a link to a file outside the"),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "manifest.json"),
    "no JSON": (lambda b: (b / "manifest.json").write_text('{"version": '), "manifest.json: is not valid JSON"),
    "newer major version": (_edited(lambda d: d.update(version="2.0.0")), "2.0.0"),
    "unknown key": (_edited(lambda d: d["slots"][0].update(scale=2)), "scale"),
    "path with `..`": (_edited(lambda d: d["files"][0].update(path="../outside")), "may leave its folder"),
    "absolute path": (_edited(lambda d: d["files"][0].update(path="/etc/passwd")), "may leave its folder"),
    "two adapters of one name": (_edited(lambda d: d["adapters"].append(d["adapters"][0])), "a name occurs twice"),
    "a slot like an input": (_edited(lambda d: d["slots"][0].update(name="input_ids")), "name of a data input"),
    "two classes of one label": (
        _edited(lambda d: d["adapters"][1]["task"].update(labels=["a", "a"])),
        "the labels are not one name for each class",
    ),
    "a label too many": (
        _edited(lambda d: d["adapters"][1]["task"]["labels"].append("c")),
        "labels and classes differ",
    ),
    "unknown problem type": (_edited(lambda d: d["adapters"][1]["task"].update(type="guess")), "guess"),
    "another problem type": (
        _edited(lambda d: d["adapters"][1].update(task={"type": "embedding"})),
        "for `embedding`",
    ),
    "labels of what has none": (
        _edited(lambda d: d["adapters"][1]["task"].update(type="regression")),
        "labels and classes differ",
    ),
    "a threshold above 1": (
        _edited(lambda d: d["adapters"][1].update(task={**MULTI_LABEL, "thresholds": [0.5, 1.5]})),
        "threshold",
    ),
    "a threshold too few": (
        _edited(lambda d: d["adapters"][1].update(task={**MULTI_LABEL, "thresholds": [0.5]})),
        "thresholds are not one for each label",
    ),
    "another activation": (_edited(lambda d: d["adapters"][1]["task"].update(activation="sigmoid")), "activation"),
    "base head that is no adapter": (_edited(lambda d: d.update(head="nobody")), "nobody"),
    "adapters of another base": (_edited(lambda d: d.update(model_version=1)), "was made for another bundle"),
    "inputs of a length that the base does not take": (
        _edited(lambda d: d["lengths"].update(tokens={"minimum": 2, "maximum": 64})),
        "a length that the base does not take",
    ),
    "other results": (_other_golden_vectors, "does not compute what the reference computed"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_clients_refuse_a_damaged_bundle(client: Client, damaged_bundle: Path, damage: str) -> None:
    change, words = DAMAGES[damage]
    change(damaged_bundle)
    client.refuses(words, "verify", damaged_bundle)


def _file_of_another_base(bundle: Path, path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_adapter_file(bundle, path, tensors, version=7)


def _file_with_an_input(bundle: Path, path: Path, tensors: dict[str, np.ndarray]) -> None:
    """ONNX Runtime would take it for the input of the call."""
    write_adapter_file(bundle, path, {**tensors, "input_ids": np.zeros((1, 1), np.float32)})


def _file_without_a_tensor(bundle: Path, path: Path, tensors: dict[str, np.ndarray]) -> None:
    """ONNX Runtime would run it with the graph's default."""
    write_adapter_file(bundle, path, dict(list(tensors.items())[1:]))


def _file_with_nan(bundle: Path, path: Path, tensors: dict[str, np.ndarray]) -> None:
    name = next(iter(tensors))
    write_adapter_file(bundle, path, {**tensors, name: np.full_like(tensors[name], np.nan)})


def _file_with_a_short_matrix(bundle: Path, path: Path, tensors: dict[str, np.ndarray]) -> None:
    """ONNX Runtime would repeat its column, as it does with the zeros of an idle one."""
    name = next(name for name in tensors if name.endswith("fusion.value.weight"))
    assert tensors[name].shape[-1] == 1
    write_adapter_file(bundle, path, {**tensors, name: np.ones_like(tensors[name])})


def _file_that_overflows(bundle: Path, path: Path, tensors: dict[str, np.ndarray]) -> None:
    """All of its numbers are finite, and those that the head computes from them are not."""
    largest = np.finfo(np.float32).max
    heads = {name: np.full_like(tensor, largest) for name, tensor in tensors.items() if ".head." in name}
    assert heads
    write_adapter_file(bundle, path, {**tensors, **heads})


def _half_a_file(bundle: Path, path: Path, tensors: dict[str, np.ndarray]) -> None:
    data = write_adapter_file(bundle, path, tensors).read_bytes()
    path.write_bytes(data[: len(data) // 2])


FILES = {
    "of another base": (_file_of_another_base, "was made for another bundle"),
    "a tensor like an input": (_file_with_an_input, "`input_ids` is the name of a data input"),
    "a tensor is missing": (_file_without_a_tensor, "is missing"),
    "NaN": (_file_with_nan, "holds NaN"),
    "a short matrix": (_file_with_a_short_matrix, "[16, 1]"),
    "an overflow": (_file_that_overflows, "an output is NaN or infinite"),
    "half": (_half_a_file, "damaged"),
}


@pytest.mark.parametrize("kind", FILES)
def test_clients_refuse_an_invalid_adapter_file(
    client: Client, small_bundle: Path, three_rows: Path, tmp_path: Path, kind: str
) -> None:
    make, words = FILES[kind]
    path = tmp_path / "new.onnx_adapter"
    make(small_bundle, path, load_file(small_bundle / "adapters" / "tone.safetensors"))
    client.refuses(words, "run", small_bundle, "--inputs", three_rows, "--load", f"new={path}", "--adapter", "new")


IDS, MASK = [[2, 5, 3]], [[1, 1, 1]]

CALLS = {
    "unknown adapter": ({"input_ids": IDS, "attention_mask": MASK}, ["--adapter", "nobody"], "nobody"),
    "lengths that differ": ({"input_ids": IDS, "attention_mask": [[1, 1]]}, [], "wrong shape"),
    "one axis": ({"input_ids": [2, 5, 3], "attention_mask": [1, 1, 1]}, [], "wrong shape"),
    "ragged": ({"input_ids": [[2, 3], [2]], "attention_mask": [[1, 1], [1, 1]]}, [], "rows of different lengths"),
    "no mask": ({"input_ids": IDS}, [], "attention_mask"),
    "another input": ({"input_ids": IDS, "attention_mask": MASK, "more": MASK}, [], "more"),
    "an id that is no word": ({"input_ids": [[2, 20, 3]], "attention_mask": MASK}, [], "out of range"),
    "a negative id": ({"input_ids": [[2, -1, 3]], "attention_mask": MASK}, [], "out of range"),
    "a mask without tokens": ({"input_ids": [IDS[0]] * 2, "attention_mask": [MASK[0], [0, 0, 0]]}, [], "no token"),
    "a mask of other numbers": ({"input_ids": IDS, "attention_mask": [[1, 2, 0]]}, [], "no token"),
    "a fraction": ({"input_ids": [[2, 1.5, 3]], "attention_mask": MASK}, [], "invalid numbers of its type"),
    "more adapters than rows": (
        {"input_ids": IDS, "attention_mask": MASK},
        ["--adapter", "tone", "--adapter", "topic"],
        "one adapter for each row",
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_clients_refuse_an_invalid_call(client: Client, small_bundle: Path, tmp_path: Path, call: str) -> None:
    inputs, arguments, words = CALLS[call]
    if call == "ragged" and not client.tokenizes:  # the C++ client takes rows of different lengths, and compares each
        words = "row 1, `attention_mask`: an input has a wrong shape"
    path = tmp_path / "inputs.json"
    path.write_text(json.dumps(inputs))
    client.refuses(words, "run", small_bundle, "--inputs", path, *(arguments or ["--adapter", "base"]))


def test_a_call_without_a_name_is_refused(client: Client, small_bundle: Path, tmp_path: Path) -> None:
    """The base would answer, with success; in a browser, the page refuses it, and not its command line."""
    path = tmp_path / "in.json"
    path.write_text(json.dumps({"input_ids": [[5, 6]], "attention_mask": [[1, 1]]}), encoding="utf-8")
    done = client.call("run", small_bundle, "--inputs", path)
    in_browser = any("client.mjs" in str(word) for word in client.command)
    assert done.returncode == (1 if in_browser else 2)
    assert "no adapter is named; found adapters that answer: " in done.stderr
    named, dashed = (client.call("run", small_bundle, "--inputs", path, "--adapter", name) for name in ("base", "-"))
    assert named.stdout == dashed.stdout
    assert json.loads(named.stdout)[0]["adapter"] is None


def test_clients_exit_with_documented_codes(client: Client, small_bundle: Path) -> None:
    """Separate processes, as for users: an invalid command line, and a damaged bundle."""
    alone = client.alone()
    assert alone.call("run", small_bundle).returncode == 2
    assert alone.call("look", small_bundle).returncode == 2
    alone.refuses("manifest.json", "verify", small_bundle / "adapters")
