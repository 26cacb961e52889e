"""`pack`: plain tensors through the door, or a list of all that is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import adapter_export as ae

OPTIONS = ("--kind", "pfeiffer", "--activation", "relu")


@pytest.fixture
def weights(tmp_path: Path, plain_tensors) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(plain_tensors("pfeiffer", classes=2), path)
    return path


def test_packed_folder_contains_the_tensors_unchanged(cli, model: Path, weights: Path, tmp_path: Path) -> None:
    made = cli.json("pack", weights, *OPTIONS, "--base", model, "--labels", "bad, good", "-o", tmp_path / "deep" / "a")
    assert made["name"] == "a"
    assert made["task"]["labels"] == ["bad", "good"]
    assert made["sites"] == ["layers.0.ffn", "layers.1.ffn"]
    found, given = load_file(tmp_path / "deep" / "a" / "weights.safetensors"), load_file(weights)
    assert found.keys() == given.keys()
    assert all(np.array_equal(found[name], given[name]) for name in given)


def test_the_message_names_the_next_step(cli, model: Path, weights: Path, tmp_path: Path) -> None:
    found = cli.done("pack", weights, *OPTIONS, "--base", model, "--labels", "bad,good", "-o", tmp_path / "a")
    assert "Next: adapter-export build" in found.stderr
    assert found.stdout == ""


def test_other_float_types_are_converted_with_a_word(cli, model: Path, plain_tensors, tmp_path: Path) -> None:
    halves = {name: tensor.astype(np.float16) for name, tensor in plain_tensors("pfeiffer").items()}
    save_file(halves, tmp_path / "halves.safetensors")
    found = cli.done("pack", tmp_path / "halves.safetensors", *OPTIONS, "--base", model, "-o", tmp_path / "a")
    assert "8 tensors of float16 converted to float32" in found.stderr


def _spoiled(tensors: dict[str, np.ndarray], how: str) -> dict[str, np.ndarray]:
    name = "layers.1.ffn.up.weight"
    match how:
        case "missing":
            return {key: value for key, value in tensors.items() if key != name}
        case "shape":
            return tensors | {name: tensors[name][:, :-1].copy()}
        case "transposed":
            return tensors | {name: np.ascontiguousarray(tensors[name].T)}
        case "nan":
            return tensors | {name: np.full_like(tensors[name], np.nan)}
    raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "`layers.1.ffn.up.weight` is missing"),
        ("shape", "has shape [4, 15], not [4, 16]"),
        ("transposed", "it looks transposed: weights are stored [in, out]"),
        ("nan", "contains 64 NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    cli, model: Path, plain_tensors, tmp_path: Path, how: str, words: str
) -> None:
    save_file(_spoiled(plain_tensors("pfeiffer"), how), tmp_path / "w.safetensors")
    cli.refused(3, words, "pack", tmp_path / "w.safetensors", *OPTIONS, "--base", model, "-o", tmp_path / "out" / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.safetensors"]


def test_a_head_without_labels_is_a_wrong_call(cli, model: Path, weights: Path, tmp_path: Path) -> None:
    cli.refused(2, "Pass `--labels`", "pack", weights, *OPTIONS, "--base", model, "-o", tmp_path / "a")


def test_a_truncated_file_is_refused(cli, model: Path, weights: Path, tmp_path: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-20])
    cli.refused(3, str(weights), "pack", weights, *OPTIONS, "--base", model, "--labels", "a,b", "-o", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_existing_adapter_is_replaced_only_with_force(cli, model: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("keep")
    call = ("pack", weights, *OPTIONS, "--base", model, "--labels", "a,b", "-o", tmp_path / "a")
    cli.refused(3, "already exists", *call)
    assert (tmp_path / "a" / "mine.txt").read_text() == "keep"
    cli.done(*call, "--force")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["adapter_graph.json", "weights.safetensors"]


def test_full_disk_leaves_the_existing_folder(cli, model: Path, plain_tensors, tmp_path: Path) -> None:
    save_file(plain_tensors("pfeiffer", width=4096), tmp_path / "w.safetensors")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("keep")
    call = ("pack", tmp_path / "w.safetensors", *OPTIONS, "--base", model, "-o", tmp_path / "a", "--force")
    cli.refused(3, "could not be written", *call, file_size=500_000)
    assert (tmp_path / "a" / "mine.txt").read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "w.safetensors"]


def test_the_call_takes_tensors(cli, model: Path, weights: Path, tmp_path: Path) -> None:
    cli.done("pack", weights, *OPTIONS, "--base", model, "--labels", "bad,good", "-o", tmp_path / "a")
    made = ae.pack(load_file(weights), model, kind="pfeiffer", activation="relu", labels=("bad", "good"), name="a")
    assert ae.save(made, tmp_path / "b").exists()
    for file in ("adapter_graph.json", "weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
