"""`capture --trust-pickle`: a pickled module becomes an archive, and nothing is read without that word."""

from __future__ import annotations

import copy
import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

SRC = "src=float32[batch,sequence,16]"


class _Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


@pytest.fixture
def pickled(encoder: nn.Module, tmp_path: Path) -> Path:
    torch.save(encoder, tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


def test_a_described_module_becomes_a_base(cli, encoder: nn.Module, pickled: Path, tmp_path: Path) -> None:
    from adapter_export.torch_backend.base.torch_base import load_base

    made = cli.json("capture", "--trust-pickle", pickled, "--input", SRC, "--max-tokens", 30, "-o", tmp_path / "m.pt")
    assert made["inputs"] == ["src"]
    assert made["max_tokens"] == 30
    base = load_base(tmp_path / "m.pt")
    assert base.inputs[0].axes == ("batch", "sequence", 16)
    x = torch.randn(3, 5, 16)
    with torch.inference_mode():
        assert torch.allclose(base.run({"src": x})["output_0"], encoder(x), rtol=0, atol=1e-5)
    names = [site["name"] for site in cli.json("sites", tmp_path / "m.pt")["sites"]]
    assert {"layers.0.attention", "layers.1.ffn"} <= set(names)


def test_tokens_by_their_usual_names_need_no_description(cli, hf_folder: Path, model: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    from adapter_export.torch_backend.base.torch_base import load_base

    torch.save(AutoModel.from_pretrained(hf_folder).eval(), tmp_path / "mine.pt")
    out = tmp_path / "deep" / "m.pt"
    tokenizer = ("--tokenizer", hf_folder / "tokenizer.json")
    made = cli.json("capture", "--trust-pickle", tmp_path / "mine.pt", *tokenizer, "-o", out)
    expected = json.loads(model.with_name("capture.json").read_text("utf-8"))
    assert {**made, "model": ""} == {**expected, "model": "", "bytes": made["bytes"]}
    assert load_base(out).tokenizer == load_base(model).tokenizer


def test_an_old_pickle_is_read_as_well_and_fewer_bits_become_float32(cli, encoder: nn.Module, tmp_path: Path) -> None:
    from adapter_export.torch_backend.base.torch_base import load_base

    half = copy.deepcopy(encoder).to(torch.bfloat16)
    torch.save(half, tmp_path / "mine.pt", _use_new_zipfile_serialization=False)
    made = cli.json("capture", "--trust-pickle", tmp_path / "mine.pt", "--input", SRC, "-o", tmp_path / "m.pt")
    assert made["outputs"] == ["output_0"]
    expected = dict(half.named_parameters())
    for name, weight in load_base(tmp_path / "m.pt").program.named_parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected[name].float())


def test_pickled_code_runs_only_with_trust_pickle(cli, tmp_path: Path) -> None:
    torch.save(_Runs(tmp_path / "was here"), tmp_path / "mine.pt")
    found = cli.refused(3, "could run code", "capture", tmp_path / "mine.pt", "-o", tmp_path / "m.pt")
    assert "only if you trust" in found.stderr.casefold()
    assert "capture --trust-pickle" in found.stderr
    assert not (tmp_path / "was here").exists()
    cli.refused(
        3, "does not contain a module", "capture", "--trust-pickle", tmp_path / "mine.pt", "-o", tmp_path / "m.pt"
    )
    assert (tmp_path / "was here").exists()
    assert not (tmp_path / "m.pt").exists()


def test_unclear_inputs_require_a_description(cli, pickled: Path, tmp_path: Path) -> None:
    found = cli.refused(2, "are unclear", "capture", "--trust-pickle", pickled, "-o", tmp_path / "m.pt")
    assert "TransformerEncoder.forward(src" in found.stderr
    assert "--input" in found.stderr


@pytest.mark.parametrize(
    ("described", "words"),
    [
        (["other=float32[batch,16]"], "do not match the arguments of the model"),
        (["src"], "invalid input description"),
        (["src=float16[batch,sequence,16]"], "float32"),
        (["src=float32[batch,-1]"], "invalid input description"),
        (["src=float32[batch;sequence]"], "invalid input description"),
        ([SRC, SRC], "described twice"),
    ],
)
def test_invalid_input_descriptions_are_refused(
    cli, pickled: Path, tmp_path: Path, described: list[str], words: str
) -> None:
    options = [word for text in described for word in ("--input", text)]
    cli.refused(2, words, "capture", "--trust-pickle", pickled, *options, "-o", tmp_path / "m.pt")
    assert not (tmp_path / "m.pt").exists()


def test_pickles_of_a_missing_class_are_refused(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somewhere_else")
    module.Net = type("Net", (nn.Linear,), {"__module__": "somewhere_else"})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "somewhere_else", module)
        torch.save(module.Net(2, 2), tmp_path / "mine.pt")
    found = cli.refused(3, "somewhere_else", "capture", "--trust-pickle", tmp_path / "mine.pt", "-o", tmp_path / "m.pt")
    assert "PYTHONPATH" in found.stderr


def test_capture_refuses_inputs_that_are_not_pickles(cli, model: Path, hf_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.pt"
    cli.refused(3, "an archive of `torch.export` already", "capture", "--trust-pickle", model, "-o", out)
    cli.refused(3, "an archive of `torch.export` already", "capture", model, "-o", out)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    cli.refused(3, "a state dict", "capture", "--trust-pickle", tmp_path / "weights.pt", "-o", out)
    cli.refused(2, "a folder", "capture", "--trust-pickle", hf_folder, "-o", out)
    cli.refused(2, "`--bare` applies to Hugging Face folders", "capture", "--trust-pickle", model, "--bare", "-o", out)
    cli.refused(2, "do not match the arguments of the model", "capture", hf_folder, "--input", SRC, "-o", out)
    cli.refused(3, "does not exist", "capture", "--trust-pickle", tmp_path / "nothing.pt", "-o", out)
    assert not out.exists()
