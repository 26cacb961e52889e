"""A decoder's two archives, with and without cache: an adapter trained on one is built into the other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

WORDS = 30


@pytest.fixture(scope="module")
def archives(cli, hf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The bare model, and the model as it generates."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = LlamaForCausalLM(LlamaConfig(**size, num_key_value_heads=1, vocab_size=WORDS, max_position_embeddings=40))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 1.0 if weight.dim() == 1 else 0.0, 0.2)
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    shutil.copy(hf_folder / "tokenizer.json", folder)
    cli.done("capture", folder, "--bare", "-o", folder / "bare.pt")
    assert "--task causal_lm" in cli.done("capture", folder, "-o", folder / "cached.pt").stderr
    return folder / "bare.pt", folder / "cached.pt"


def test_an_adapter_of_the_bare_model_goes_into_the_decoder(cli, archives: tuple[Path, Path], tmp_path: Path) -> None:
    bare, cached = archives
    data = tmp_path / "data.tsv"
    data.write_text(
        "text\tlabel\n" + "".join(f"{word} film\tgood\nbad {word}\tbad\n" for word in ("fine", "good", "dull", "how"))
    )
    options = ("--data", data, "--epochs", "1", "--bottleneck", "4", "--pooling", "first", "-o", tmp_path / "tone")
    refused = cli.refused(3, "captured with its cache", "train", cached, *options)
    assert "capture the bare model: `--bare`" in refused.stderr
    assert "--task causal_lm" in refused.stderr
    made = cli.json("train", bare, *options)
    assert made["sites"] == ["layers.0.attention", "layers.0.ffn"]
    build = ("build", cached, "--adapters", tmp_path / "tone", "-o", tmp_path / "bundle")
    cli.refused(3, "was trained on another base", *build)
    manifest = cli.json(*build, "--allow-base-mismatch")["manifest"]
    assert manifest["adapters"][0]["base"] != manifest["base"]
    assert "passed" in cli.done("check", tmp_path / "bundle", "--against", cached, "--quick").stdout
    cli.done("build", bare, "--adapters", tmp_path / "tone", "-o", tmp_path / "classifier")
    for built in ("bundle", "classifier"):  # the folder is captured like the bundle's base
        assert "passed" in cli.done("check", tmp_path / built, "--against", bare.parent, "--quick").stdout


def test_described_inputs_need_the_bare_model(cli, archives: tuple[Path, Path], tmp_path: Path) -> None:
    described = ("--input", "input_ids=int64[batch,sequence]")
    capture = ("capture", archives[0].parent, *described, "-o", tmp_path / "model.pt")
    assert "`--bare`" in cli.refused(2, "captured with a cache, which defines its inputs", *capture).stderr
    assert cli.json(*capture, "--bare")["inputs"] == ["input_ids"]
