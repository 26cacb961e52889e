"""Hugging Face folders as bases: the numbers of transformers, and nothing beyond the folder's contents."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import small, traced_once
from transformers import AutoModel

from adapter_export.errors import BaseModelError, FileError, OutputExistsError
from adapter_export.format.lengths import Lengths
from adapter_export.torch_backend.base.huggingface_folder import capture_folder, open_folder
from adapter_export.torch_backend.base.torch_base import load_base


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    with traced_once():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "folder"


def text(rows: int, tokens: int, typed: bool) -> dict[str, torch.Tensor]:
    # not the padding ids 0 and 1
    ids = torch.randint(2, 99, (rows, tokens))
    mask = torch.ones_like(ids)
    mask[-1, tokens // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": torch.zeros_like(ids)} if typed else {})


MODELS: dict[str, tuple[bool, int]] = {
    "Bert": (True, 40),
    "Roberta": (True, 38),  # positions start after the padding id
    "DistilBert": (False, 40),
    "GPT2": (False, 40),  # it would add the embedding of token 0 as the token type
    "Llama": (False, 40),
}


@pytest.mark.parametrize("name", MODELS)
def test_opened_folders_compute_what_transformers_computes(name: str, folder: Path) -> None:
    typed, longest = MODELS[name]
    model = small(name)
    model.save_pretrained(folder)
    base = open_folder(folder)
    assert base.max_tokens == longest
    assert [record.name for record in base.inputs] == list(text(1, 1, typed))
    for rows, tokens in ((1, 1), (3, 7), (2, longest)):
        inputs = text(rows, tokens, typed)
        with torch.inference_mode():
            expected = model(**inputs)
            found = base.run(inputs)
        real = inputs["attention_mask"].bool()
        hidden = found["last_hidden_state"][real], expected.last_hidden_state[real]
        torch.testing.assert_close(*hidden, rtol=0, atol=1e-5)


def test_vision_folders_compute_what_transformers_computes(folder: Path) -> None:
    model = small("ViT")
    model.save_pretrained(folder)
    base = open_folder(folder)
    assert [record.axes for record in base.inputs] == [("batch", 3, 32, 32)]
    pixels = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = model(pixel_values=pixels)
        found = base.run({"pixel_values": pixels})
    torch.testing.assert_close(found["last_hidden_state"], expected.last_hidden_state, rtol=0, atol=1e-5)


def test_minilm_keeps_its_pooler_and_tokenizer(minilm_archive: Path, minilm_folder: Path) -> None:
    base = load_base(minilm_archive)
    assert [record.name for record in base.outputs] == ["last_hidden_state", "pooler_output"]
    assert base.tokenizer == (minilm_folder / "tokenizer.json").read_text(encoding="utf-8")
    assert base.max_tokens == 512
    model = AutoModel.from_pretrained(minilm_folder).eval()
    inputs = {name: value % 2 if name == "token_type_ids" else value for name, value in text(2, 9, True).items()}
    with torch.inference_mode():
        expected, found = model(**inputs), base.run(inputs)
    torch.testing.assert_close(found["pooler_output"], expected.pooler_output, rtol=0, atol=1e-5)


def test_a_pooler_without_weights_is_left_out(folder: Path) -> None:
    small("Bert", "ForMaskedLM").save_pretrained(folder)
    first, second = open_folder(folder), open_folder(folder)
    assert [record.name for record in first.outputs] == ["last_hidden_state"]
    assert first.fingerprint == second.fingerprint
    assert not [name for name, _ in first.program.named_parameters() if "pooler" in name]


def drop_weights(folder: Path, part: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if part not in name}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_weights_are_never_random(folder: Path) -> None:
    small("Bert").save_pretrained(folder)
    drop_weights(folder, "layer.0.output.dense")
    with pytest.raises(BaseModelError, match=r"would be random.*encoder.layer.0.output.dense.bias"):
        open_folder(folder)


def test_weights_of_half_precision_become_float32(folder: Path) -> None:
    small("Bert").to(torch.bfloat16).save_pretrained(folder)
    base = open_folder(folder)
    assert {tensor.dtype for tensor in base.program.parameters()} == {torch.float32}


def test_models_that_branch_on_lengths_record_their_limits(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 64, "initializer_range": 0.2}
    transformers.XLNetModel(transformers.XLNetConfig(**sizes)).save_pretrained(folder)
    assert open_folder(folder).lengths == {"sequence": Lengths(1, 511)}


def test_encoder_decoder_folder_computes_what_transformers_computes(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "d_model": 32, "num_layers": 1, "num_heads": 4, "d_ff": 64, "d_kv": 8}
    model = transformers.T5Model(transformers.T5Config(**sizes)).eval()
    model.save_pretrained(folder)
    base = open_folder(folder)
    axes = {record.name: record.axes for record in base.inputs}
    assert axes == {
        "input_ids": ("batch", "sequence"),
        "attention_mask": ("batch", "sequence"),
        "decoder_input_ids": ("batch", "decoder_sequence"),
        "decoder_attention_mask": ("batch", "decoder_sequence"),
    }
    inputs = text(3, 7, False) | {f"decoder_{name}": value for name, value in text(3, 4, False).items()}
    with torch.inference_mode():
        expected, found = model(**inputs, use_cache=False), base.run(inputs)
    real = inputs["decoder_attention_mask"].bool()
    hidden = found["last_hidden_state"][real], expected.last_hidden_state[real]
    torch.testing.assert_close(*hidden, rtol=0, atol=1e-5)


def test_a_pickle_is_never_read(folder: Path) -> None:
    small("Bert").save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"`pytorch_model.bin`, a pickle"):
        open_folder(folder)


def test_folders_without_weights_are_refused(folder: Path) -> None:
    small("Bert").save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="no weights"):
        open_folder(folder)


def test_paths_without_a_model_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileError, match=r"no `config.json`|no folder"):
            open_folder(path)


@pytest.mark.parametrize(
    ("file", "contents"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        ("model.safetensors", b""),
        ("config.json", b"{"),
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "unheard_of"}'),
        ("config.json", b'{"model_type": "bert", "hidden_size": 64}'),
    ],
)
def test_damaged_folders_are_refused(file: str, contents: bytes, folder: Path) -> None:
    small("Bert").save_pretrained(folder)
    (folder / file).write_bytes(contents)
    with pytest.raises(BaseModelError, match=r"cannot open|random numbers") as caught:
        open_folder(folder)
    assert str(folder) in str(caught.value)


def test_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    small("Bert").save_pretrained(folder)
    marker = tmp_path / "marker"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match=r"custom model class, whose code is not run.*`auto_map`, for `BertModel`"):
        open_folder(folder)
    assert not marker.exists()


def test_existing_archive_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    small("Bert").save_pretrained(folder)
    path = tmp_path / "model.pt"
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        capture_folder(folder, path)
    assert path.read_text() == "mine"


def test_capture_prints_nothing(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small("Bert", "ForMaskedLM").save_pretrained(folder)
    capfd.readouterr()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    capture_folder(folder, tmp_path / "model.pt")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert transformers.utils.logging.is_progress_bar_enabled() == bars
    shutil.rmtree(folder)
    assert load_base(tmp_path / "model.pt").max_tokens == 40
