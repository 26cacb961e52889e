"""`build`: a bundle, or an error and nothing at all."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_bundle_is_complete(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [adapter["name"] for adapter in manifest["adapters"]] == ["topic", "tone"]
    assert [adapter["task"]["labels"] for adapter in manifest["adapters"]] == [["a", "b", "c"], ["bad", "good"]]
    assert manifest["golden"]["reference"].startswith("torch ")
    assert manifest["lengths"]["sequence"]["maximum"] == 80
    assert all((bundle / file["path"]).stat().st_size == file["bytes"] for file in manifest["files"])
    assert {"model.onnx", "base.bin", "adapters/topic.onnx_adapter"} <= {file["path"] for file in manifest["files"]}


def test_a_bundle_explains_itself(cli, bundle: Path, monkeypatch, capsys) -> None:
    text = (bundle / "README.md").read_text(encoding="utf-8")
    assert "| topic | houlsby | single\\_label, text | a, b, c |" in text
    assert hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest() in text
    assert text.count("\n") < 40
    shell, python = re.findall(r"```(?:sh|python)\n(.*?)```", text, re.S)
    (answering,) = [line for line in shell.splitlines() if line.startswith("adapter-export run")]
    assert "a text" in cli.done(*shlex.split(answering)[1:], folder=bundle).stdout
    monkeypatch.chdir(bundle)
    exec(compile(python, "README.md", "exec"), {})  # noqa: S102 - the lines of the README itself
    assert "'probability'" in capsys.readouterr().out
    cli.done("verify", bundle)


def test_adapter_names_are_looked_up_beside_the_model(cli, graph: Path, adapters: Path, tmp_path: Path) -> None:
    shutil.copytree(graph.parent, tmp_path, dirs_exist_ok=True)
    shutil.copytree(adapters / "topic", tmp_path / "topic")
    work = tmp_path / "work"
    shutil.copytree(adapters / "tone", work / "adapters" / "tone")
    made = cli.json("build", "../model.onnx", "--adapters", "topic,tone,again=tone", "-o", "out/bundle", folder=work)
    assert [adapter["name"] for adapter in made["manifest"]["adapters"]] == ["topic", "tone", "again"]
    assert (work / "out" / "bundle" / "manifest.json").is_file()


def test_the_table_shows_the_sizes_and_the_next_step(cli, model: Path, adapters: Path, tmp_path: Path) -> None:
    found = cli.done("build", model, "--adapters", adapters / "tone", "-o", tmp_path / "bundle")
    assert "base.bin" in found.stdout
    assert "`tone`, pfeiffer" in found.stdout
    assert "Next: adapter-export check" in found.stderr
    assert "exporting the base to ONNX" in found.stderr


def test_an_onnx_base_is_built_with_the_cut_base_as_reference(cli, graph: Path, adapters: Path, tmp_path: Path) -> None:
    made = cli.json("build", graph, "--adapters", adapters / "topic", "-o", tmp_path / "bundle")
    assert "float64 for adapters" in made["manifest"]["golden"]["reference"]
    assert made["manifest"]["text"] is None


def test_a_name_that_occurs_twice_is_refused(cli, model: Path, adapters: Path, tmp_path: Path) -> None:
    twice = f"{adapters / 'tone'},{adapters / 'tone'}"
    cli.refused(3, "two adapters have the same name", "build", model, "--adapters", twice, "-o", tmp_path / "bundle")
    assert _left(tmp_path) == []


def test_a_name_that_leads_to_several_adapters_is_refused(cli, model: Path, adapters: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "tone", tmp_path / "adapters" / "tone"):
        shutil.copytree(adapters / "tone", place)
    cli.refused(3, "matches several adapters", "build", model, "--adapters", "tone", "-o", "bundle", folder=tmp_path)


@pytest.mark.parametrize(
    ("listed", "words"),
    [("", "has an empty item"), ("a,,b", "has an empty item"), ("x=", "the name of an adapter is empty; found `x=`")],
)
def test_an_empty_name_is_a_wrong_call(
    cli, model: Path, adapters: Path, tmp_path: Path, listed: str, words: str
) -> None:
    shutil.copytree(adapters / "tone", tmp_path / "a")
    cli.refused(2, words, "build", model, "--adapters", listed, "-o", "bundle", folder=tmp_path)


def test_missing_adapters_are_named_with_the_searched_places(cli, model: Path, tmp_path: Path) -> None:
    found = cli.refused(3, "`nobody`", "build", model, "--adapters", "nobody", "-o", "bundle", folder=tmp_path)
    assert "adapters/nobody" in found.stderr
    assert _left(tmp_path) == []


@pytest.fixture
def spoiled(adapters: Path, tmp_path: Path) -> Path:
    """A copy of an adapter, to be spoiled."""
    return Path(shutil.copytree(adapters / "tone", tmp_path / "work" / "tone"))


def test_an_adapter_without_weights_is_refused(cli, model: Path, spoiled: Path, tmp_path: Path) -> None:
    (spoiled / "weights.safetensors").unlink()
    cli.refused(3, "weights.safetensors", "build", model, "--adapters", spoiled, "-o", tmp_path / "out" / "bundle")
    assert _left(tmp_path) == ["work"]


@pytest.mark.parametrize("how", ["nan", "shape"])
def test_weights_that_were_changed_are_refused(cli, model: Path, spoiled: Path, tmp_path: Path, how: str) -> None:
    tensors = load_file(spoiled / "weights.safetensors")
    name = "layers.0.ffn.up.weight"
    tensors[name] = np.full_like(tensors[name], np.nan) if how == "nan" else tensors[name][:, :-1].copy()
    save_file(tensors, spoiled / "weights.safetensors")
    cli.refused(3, "weights.safetensors", "build", model, "--adapters", spoiled, "-o", tmp_path / "out" / "bundle")
    assert _left(tmp_path) == ["work"]


def test_another_base_is_refused_unless_allowed(cli, adapters: Path, tmp_path: Path) -> None:
    """A graph with 40 positions, whose file does not say that there are no more."""
    import torch
    from transformers import BertConfig, BertModel

    from adapter_export.torch_backend.base.to_onnx import export_onnx
    from adapter_export.torch_backend.base.torch_base import load_base

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=30, max_position_embeddings=40, initializer_range=0.2, **sizes)
    BertModel(config).eval().save_pretrained(tmp_path / "hf")
    cli.done("capture", tmp_path / "hf", "-o", tmp_path / "other.pt")
    export_onnx(load_base(tmp_path / "other.pt"), tmp_path / "other.onnx")
    for base in ("other.pt", "other.onnx"):
        call = ("build", tmp_path / base, "--adapters", adapters / "tone", "-o", tmp_path / "bundle")
        found = cli.refused(3, "adapter `tone` was trained on another base", *call)
        assert "--allow-base-mismatch" in found.stderr
        assert not (tmp_path / "bundle").exists()
    manifest = cli.json(*call, "--allow-base-mismatch")["manifest"]
    (trained_on,) = [adapter["base"] for adapter in manifest["adapters"]]
    assert trained_on != manifest["base"]
    assert trained_on in found.stderr
    assert manifest["base"] in found.stderr
    assert {"batch1_sequence40", "batch3_sequence40"} <= set(manifest["golden"]["cases"])
    assert "no" in cli.done("inspect", tmp_path / "bundle").stdout


def test_existing_bundle_is_replaced_only_with_force(cli, graph: Path, adapters: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("keep")
    call = ("build", graph, "--adapters", adapters / "tone", "-o", tmp_path / "bundle")
    cli.refused(3, "already exists", *call)
    assert _left(tmp_path / "bundle") == ["mine.txt"]
    cli.done(*call, "--force")
    assert "mine.txt" not in _left(tmp_path / "bundle")
    assert _left(tmp_path) == ["bundle"]


@pytest.mark.parametrize("limit", [1_000, 12_000, 40_000])
def test_full_disk_leaves_the_existing_bundle(cli, graph: Path, adapters: Path, tmp_path: Path, limit: int) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("keep")
    call = ("build", graph, "--adapters", adapters / "tone", "-o", tmp_path / "bundle", "--force")
    cli.refused(3, "error:", *call, file_size=limit)
    assert _left(tmp_path / "bundle") == ["mine.txt"]
    assert _left(tmp_path) == ["bundle"]


def test_a_torch_archive_of_something_else_is_refused(cli, adapters: Path, tmp_path: Path) -> None:
    import torch

    torch.save({"weight": torch.ones(3)}, tmp_path / "model.pt")
    call = ("build", tmp_path / "model.pt", "--adapters", adapters / "tone", "-o", tmp_path / "bundle")
    cli.refused(3, "model.pt", *call)
    assert _left(tmp_path) == ["model.pt"]
