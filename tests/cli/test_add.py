"""`adapter-export add` and `remove` as a user runs them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import save_file


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


@pytest.fixture(scope="session")
def more(cli, model: Path, plain_tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mood`, which fits the slots of `tone` and is wider, and `odd`, which fits none."""
    folder = tmp_path_factory.mktemp("more")
    for name, activation, labels in (("mood", "relu", "sad,glad,calm"), ("odd", "tanh", "no,yes")):
        save_file(plain_tensors("pfeiffer", 9, seed=3, classes=labels.count(",") + 1), folder / "plain.safetensors")
        options = ("--kind", "pfeiffer", "--activation", activation, "--labels", labels, "--base", model)
        cli.done("pack", folder / "plain.safetensors", *options, "-o", folder / name)
    return folder


def test_an_added_adapter_runs_and_is_proved_by_torch(cli, copy: Path, model: Path, more: Path) -> None:
    weights = (copy / "base.bin").stat()
    found = cli.json("add", copy, f"{more / 'mood'},again={more / 'mood'}", "--against", model)
    assert found["added"] == ["mood", "again"]
    assert [adapter["name"] for adapter in found["manifest"]["adapters"]] == ["topic", "tone", "mood", "again"]
    assert "torch" in found["manifest"]["adapters"][2]["golden"]["reference"]
    assert (copy / "base.bin").stat().st_ino == weights.st_ino
    cli.done("check", copy, "--against", model, "--only", "mood", "--quick")
    labels = cli.json("run", copy, "--adapter", "mood", "--text", "good film")["rows"]
    assert labels[0]["label"] in ("sad", "glad", "calm")


def test_a_removed_adapter_is_gone(cli, copy: Path) -> None:
    done = cli.done("remove", copy, "tone")
    assert "removed `tone`; it now contains `topic`" in done.stderr
    cli.refused(3, "adapter `tone`: is not loaded", "run", copy, "--adapter", "tone", "--text", "good film")
    cli.refused(3, "a bundle needs at least one adapter", "remove", copy, "topic")


def test_add_refuses_invalid_adapters_with_advice(cli, copy: Path, model: Path, more: Path) -> None:
    found = cli.refused(
        3,
        "needs slots that the exported graph does not have; found activation `tanh`, but the slots have `",
        "add",
        copy,
        more / "odd",
        "--against",
        model,
    )
    assert "at layers.0.ffn" in found.stderr
    assert "Train it again with the `--activation` of the slots, or rebuild with this adapter" in found.stderr
    assert "or with its kind in `--reserve`" in found.stderr
    taken = ("add", copy, f"tone={more / 'mood'}", "--against", model)
    found = cli.refused(3, "`tone`; expected names that differ", *taken)
    assert "a route of the server then replaces the old one without downtime" in found.stderr
    twice = f"{more / 'mood'},{more / 'mood'}"
    cli.refused(3, "two adapters have the same name; found `mood` 2 times", "add", copy, twice, "--against", model)
    found = cli.refused(2, "has an empty item", "add", copy, ",a", "--against", model)
    assert "--adapters" not in found.stderr
    cli.refused(2, "Missing option '--against'", "add", copy, more / "mood")
    cli.refused(3, "is the graph of a bundle", "add", copy, more / "mood", "--against", copy / "model.onnx")


def test_a_bundle_is_not_changed_under_the_feet_of_its_user(cli, copy: Path) -> None:
    cli.refused(3, "the current folder", "remove", ".", "tone", folder=copy)
    assert (copy / "adapters/tone.onnx_adapter").exists()
