"""`--site-map`: written, edited, and given to every command that looks for sites."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture(scope="module")
def written(cli, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("map") / "sites.json"
    assert f"--site-map {path}" in cli.done("sites", model, "--write-site-map", path).stderr
    return path


@pytest.fixture
def edited(written: Path, tmp_path: Path) -> Path:
    """Only one site, at the attention of the first layer, by another name."""
    document = json.loads(written.read_text())
    attention = document["sites"]["layers.0.attention"]
    document["sites"] = dict.fromkeys(document["sites"]) | {"mine": attention}
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(document))
    return path


def test_written_site_map_gives_the_same_sites(cli, model: Path, written: Path) -> None:
    assert cli.json("sites", model, "--site-map", written) == cli.json("sites", model)
    document = json.loads(written.read_text())
    assert document["sites"]["layers.0.ffn"].keys() == {"role", "layer", "torch", "onnx"}
    assert document["sites"]["layers.0.ffn"]["onnx"].keys() == {"h", "x", "u", "y"}
    assert document["sites"]["layers.0.ffn.up"]["torch"].keys() == {"h", "u"}
    assert document["sites"]["embeddings"].keys() == {"role", "torch", "onnx"}


def test_existing_site_maps_are_not_overwritten(cli, model: Path, written: Path) -> None:
    cli.refused(3, "already", "sites", model, "--write-site-map", written)


def test_an_adapter_is_trained_built_and_checked_at_given_sites(cli, model: Path, edited: Path, tmp_path: Path) -> None:
    rows = [("good film", "good"), ("fine play", "good"), ("bad film", "bad"), ("dull play", "bad")] * 6
    data = tmp_path / "data.tsv"
    data.write_text("\n".join("\t".join(row) for row in [("text", "label"), *rows]) + "\n")
    options = ("--epochs", "1", "--bottleneck", "4", "-o", tmp_path / "tone")
    made = cli.json("train", model, "--data", data, "--site-map", edited, *options)
    assert made["sites"] == ["mine"]
    build = ("build", model, "--adapters", tmp_path / "tone", "-o", tmp_path / "bundle")
    cli.refused(3, "made with a different site map, or without one", *build)
    cli.done(*build, "--site-map", edited)
    cli.done("check", tmp_path / "bundle", "--against", model, "--site-map", edited, "--quick")


@pytest.mark.parametrize("options", [("--base-precision", "int8-weights"), ("--optimize",)])
def test_given_sites_follow_the_base_into_another_graph(
    cli, graph: Path, edited: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    tensors = {
        f"mine.{name}": np.random.default_rng(0).standard_normal(shape).astype(np.float32) * np.float32(0.2)
        for name, shape in {"down.weight": (16, 4), "down.bias": (4,), "up.weight": (4, 16), "up.bias": (16,)}.items()
    }
    save_file(tensors, tmp_path / "mine.safetensors")
    kind = ("--kind", "houlsby", "--activation", "relu", "--base", graph, "--site-map", edited)
    cli.done("pack", tmp_path / "mine.safetensors", *kind, "-o", tmp_path / "tone")
    build = ("build", graph, "--adapters", tmp_path / "tone", *options, "-o", tmp_path / "bundle")
    cli.refused(3, "made with a different site map, or without one", *build)
    made = cli.json(*build, "--site-map", edited)
    assert [site["name"] for site in made["manifest"]["sites"]] == ["mine"]
    cli.done("check", tmp_path / "bundle", "--against", graph, "--site-map", edited, "--quick")


def test_a_packed_adapter_without_a_map_is_not_built_with_one(
    cli, graph: Path, adapters: Path, written: Path, tmp_path: Path
) -> None:
    tensors = {}
    for site in ("layers.0.ffn", "layers.1.ffn"):
        for name, shape in {"down.weight": (16, 4), "down.bias": (4,), "up.weight": (4, 16), "up.bias": (16,)}.items():
            tensors[f"{site}.{name}"] = np.full(shape, 0.2, np.float32)
    save_file(tensors, tmp_path / "plain.safetensors")
    kind = ("--kind", "pfeiffer", "--activation", "relu", "--base", graph)
    cli.done("pack", tmp_path / "plain.safetensors", *kind, "-o", tmp_path / "plain")
    build = ("build", graph, "--adapters", tmp_path / "plain", "-o", tmp_path / "bundle")
    cli.refused(3, "found no site map", *build, "--site-map", written)
    cli.done(*build)


def test_a_map_that_does_not_fit_is_refused(cli, model: Path, edited: Path, tmp_path: Path) -> None:
    document = json.loads(edited.read_text())
    document["sites"]["again"] = dict(document["sites"]["mine"])
    edited.write_text(json.dumps(document))
    cli.refused(2, "expected a unique value", "sites", model, "--site-map", edited)
    del document["sites"]["again"]
    document["sites"]["mine"]["torch"]["h"] = "nowhere"
    edited.write_text(json.dumps(document))
    cli.refused(2, "the site map does not fit the base", "sites", model, "--site-map", edited)
    edited.write_text('{"version": "1.0.0", "sites": {"layers.0.ffn": null, "layers.0.ffn": null}}')
    cli.refused(3, "repeats the key `layers.0.ffn`", "sites", model, "--site-map", edited)
    document["sites"]["mine"]["role"] = "router"
    edited.write_text(json.dumps(document))
    cli.refused(3, "breaks the format", "sites", model, "--site-map", edited)
    cli.refused(3, "does not exist", "sites", model, "--site-map", tmp_path / "none.json")
