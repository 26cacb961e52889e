"""`capture`: an archive of a Hugging Face folder, or an error and nothing at all."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest


def test_the_archive_is_the_model(hf_folder: Path, model: Path) -> None:
    import torch
    from transformers import AutoModel

    from adapter_export.torch_backend.base.torch_base import load_base

    made = json.loads(model.with_name("capture.json").read_text("utf-8"))
    assert made["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert made["tokenizer"] is True
    assert made["max_tokens"] == 80
    base = load_base(model)
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long(), "token_type_ids": torch.zeros_like(ids)}
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(hf_folder).eval()(**inputs).last_hidden_state
        found = base.run(inputs)["last_hidden_state"]
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert base.tokenizer == (hf_folder / "tokenizer.json").read_text()


def test_folders_without_a_model_are_refused(cli, tmp_path: Path) -> None:
    cli.refused(3, "no folder", "capture", tmp_path / "nowhere", "-o", tmp_path / "out" / "model.pt")
    (tmp_path / "empty").mkdir()
    cli.refused(3, "no `config.json`", "capture", tmp_path / "empty", "-o", tmp_path / "out" / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_capture_refuses_inputs_that_the_model_lacks(cli, hf_folder: Path, tmp_path: Path) -> None:
    capture = ("capture", hf_folder, "-o", tmp_path / "model.pt")
    cli.refused(2, "do not match the arguments of the model", *capture, "--input", "pixels=float32[batch,3,8,8]")
    found = cli.refused(3, "cannot run on example inputs", *capture, "--input", "input_ids=float32[batch,sequence]")
    assert "--input NAME=TYPE" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_truncated_weights_are_refused(cli, hf_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(hf_folder, tmp_path / "hf"))
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    cli.refused(3, "hf", "capture", copy, "-o", tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_existing_archive_is_replaced_only_with_force(cli, hf_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("mine")
    cli.refused(3, "already exists", "capture", hf_folder, "-o", tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_text() == "mine"


def test_full_disk_leaves_the_existing_archive(cli, hf_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("mine")
    cli.refused(3, "model.pt", "capture", hf_folder, "-o", tmp_path / "model.pt", "--force", file_size=20_000)
    assert (tmp_path / "model.pt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_folder_without_torch_names_the_extra_that_is_enough(
    cli, hf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    cli.refused(2, "adapter-export[hf]", "capture", hf_folder, "-o", tmp_path / "model.pt")
    cli.refused(2, "adapter-export[hf]", "sites", hf_folder)
    assert not list(tmp_path.iterdir())
