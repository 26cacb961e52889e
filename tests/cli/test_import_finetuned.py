"""`adapter-export import finetuned` on the real base: merged by PEFT, compared on rows, and vectors of sentences."""

from __future__ import annotations

import shutil
from pathlib import Path

import peft
import pytest
import torch
from once import once
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft"),
]

TEXTS = ("how far is the moon", "who wrote this play", "a good film", "dull", "call now to claim your prize", "")
LABELS = ("bad", "good")


@pytest.fixture(scope="module", params=[False, True], ids=["lora", "dora"])
def merged(request: pytest.FixtureRequest, minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MiniLM with a head and a merged LoRA or DoRA, and its tokenizer."""

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: at for at, name in enumerate(LABELS)}}
        problem = {"problem_type": "single_label_classification"}
        model = AutoModelForSequenceClassification.from_pretrained(minilm_folder, **names, **problem)
        config = peft.LoraConfig(r=4, target_modules=["query", "output.dense"], use_dora=request.param)
        wrapped = peft.get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_A" in name or "lora_B" in name:
                    parameter.normal_(0, 0.05)
        wrapped.merge_and_unload().save_pretrained(folder)
        AutoTokenizer.from_pretrained(minilm_folder).save_pretrained(folder)

    return once(tmp_path_factory, f"merged_minilm_{request.param}", make)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.tsv"
    lines = [f"{text}\t{LABELS[at % 2]}" for at, text in enumerate(TEXTS) if text]
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n", encoding="utf-8")
    return path


def test_merged_adapter_agrees_with_the_checkpoint_on_rows(
    cli, merged: Path, minilm_archive: Path, rows: Path, tmp_path: Path
) -> None:
    place = ("import", "finetuned", merged, "--base", minilm_archive)
    made = cli.json(*place, "--data", rows, "-o", tmp_path / "a")
    assert made["exact"]
    assert {layer["rank"] for layer in made["layers"]} == {4}
    assert len(made["layers"]) == 18
    assert made["deviation"]["difference"] < 1e-5 * made["deviation"]["scale"]
    assert made["task"]["labels"] == list(LABELS)
    assert made["comparison"]["agreements"][0]["value"] == 1
    cli.refused(3, "no column `class`", *place, "--data", rows, "--label", "class", "-o", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_import_reports_changed_layers_and_deviation(cli, merged: Path, minilm_archive: Path, tmp_path: Path) -> None:
    done = cli.done("import", "finetuned", merged, "--base", minilm_archive, "--rank", "2", "-o", tmp_path / "a")
    assert "18 changed linear layers" in done.stdout
    assert "the adapter is an approximation: it carries" in done.stderr
    assert "within" in done.stderr


def test_sentence_transformers_modules_become_the_head(
    cli, minilm_folder: Path, minilm_archive: Path, tmp_path: Path
) -> None:
    """A folder of sentence-transformers keeps its modules as the head."""
    model = tmp_path / "model"
    shutil.copytree(minilm_folder, model)
    tensors = load_file(model / "model.safetensors")
    torch.manual_seed(0)
    name = "encoder.layer.3.attention.self.value.weight"
    tensors[name] += 0.05 * torch.randn(384, 2) @ torch.randn(2, 384)
    (model / "model.safetensors").unlink()
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    made = cli.json("import", "finetuned", model, "--base", minilm_archive, "-o", tmp_path / "a")
    assert (made["exact"], made["layers"][0]["rank"]) == (True, 2)
    assert made["task"]["type"] == "embedding"
