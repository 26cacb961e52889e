"""The adapter that NumPy trained: it learnt, and ONNX Runtime computes with it what NumPy computed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from building import build_bundle
from tiers import extended
from tiny_onnx import save_tiny
from tokenizers import Tokenizer, models, pre_tokenizers

from adapter_export.format.adapter_files import read_adapter
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime import Bundle

PROGRAM = Path(__file__).parents[2] / "examples" / "numpy_training.py"
WORDS = ("good", "fine", "bad", "dull", "film", "play", "moon")


@pytest.fixture(scope="module")
@extended
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("numpy")
    save_tiny(folder)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **{word: at + 1 for at, word in enumerate(WORDS)}}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    rows = [
        f"{first} {telling} {second}\t{label}"
        for telling, label in (("good", "+"), ("fine", "+"), ("bad", "-"), ("dull", "-"))
        for first in ("film", "play", "moon")
        for second in ("film", "play moon", "")
    ]
    (folder / "train.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    words = [folder / "tiny.onnx", folder, folder / "train.tsv", folder / "tone"]
    command = [sys.executable, str(PROGRAM), *map(str, words)]
    found = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert found.returncode == 0, found.stderr
    return folder, found.stdout


def test_numpy_training_reduces_the_loss(trained: tuple[Path, str]) -> None:
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", trained[1])]
    assert losses[0] == pytest.approx(np.log(2), abs=0.1)
    assert losses[-1] < losses[0] / 2
    assert "100.0% of the training texts" in trained[1]


def test_the_adapter_acts_in_the_last_block_alone(trained: tuple[Path, str]) -> None:
    adapter = read_adapter(trained[0] / "tone")
    assert (adapter.kind, list(adapter.placements)) == ("adapter_plus", ["layers.1.ffn"])
    assert adapter.head is not None
    assert adapter.head.labels == ("+", "-")


def test_the_bundle_classifies_as_numpy_did(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    base, adapter = open_onnx(folder / "tiny.onnx"), read_adapter(folder / "tone")
    cases = input_cases(base.inputs, seed=1, shapes=[{"batch": 2, "tokens": 3}])
    build_bundle(base, [adapter], folder / "bundle_of_tone", references=CutRunner(base), cases=cases)
    session = Bundle.open(folder / "bundle_of_tone").session()
    ids = np.array([[5, 1, 6], [5, 3, 6]])
    logits = session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)}, adapter="tone")["logits"]
    assert logits.argmax(-1).tolist() == [0, 1]
