"""The example that trains with the `Trainer` of transformers, on a small model."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_encoder import WORDS, tokenizer_json
from tokenizers import Tokenizer
from toolchain import skip_or_fail
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import adapter_export as ae
from adapter_export.torch_backend.torch_runner import TorchRunner

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_with_trainer.py"


def tiny_folder(folder: Path) -> Path:
    """A BERT with 2 layers of width 32 and weights of standard deviation 0.2, with its tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(WORDS), initializer_range=0.2, **sizes)).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json()),
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("default")
def test_trainer_example_trains_builds_and_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("accelerate") is None:
        skip_or_fail("accelerate is missing, which the Trainer needs: run `make setup`, or `pip install accelerate`")
    assert len(EXAMPLE.read_text().splitlines()) < 40
    model, output = tiny_folder(tmp_path / "model"), tmp_path / "output"
    output.mkdir()
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(model), str(output)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    adapter = ae.load_adapter(output / "reviews")
    assert adapter.name == "reviews"
    assert adapter.head is not None
    assert adapter.head.labels == ("bad", "good")
    assert np.abs(adapter.weights["layers.0.ffn.up.weight"]).max() > 0, "it has learnt something"
    inputs = {"input_ids": np.array([[4, 5, 6]]), "attention_mask": np.ones((1, 3), np.int64)}
    inputs["token_type_ids"] = np.zeros((1, 3), np.int64)
    expected = TorchRunner(ae.open_base(output / "model.pt").torch).run(inputs, adapter)
    found = ae.open_bundle(output / "bundle").session().run(inputs, "reviews")
    for name in ("last_hidden_state", "logits"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5 * np.abs(expected[name]).max())
