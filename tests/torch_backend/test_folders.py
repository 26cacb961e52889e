"""Folders of any architecture: their class, the inputs made from their files, experts, and bad input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers as hf
from heard import Heard
from tiny_onnx import random_adapter
from tokenizers.processors import TemplateProcessing
from torch import nn

import adapter_export as ae
from adapter_export.errors import BaseModelError, UsageError
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import InputRecord
from adapter_export.graph.kinds import pfeiffer
from adapter_export.torch_backend.base.capture_module import capture, dense_experts
from adapter_export.torch_backend.base.example_inputs import Prepared, described_inputs, obvious_inputs
from adapter_export.torch_backend.base.huggingface_folder import _open_base, capture_folder, open_folder
from adapter_export.torch_backend.base.own_processors import prepared_by
from adapter_export.torch_backend.base.torch_base import load_base, save_base

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = {"vocab_size": 50, "max_position_embeddings": 40}
IMAGE = {"image_size": 16, "patch_size": 4}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
WHISPER = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32} | {
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    **{"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 20, "vocab_size": 50, "pad_token_id": 0},
}
EXPERTS = {"vocab_size": 50, "num_key_value_heads": 2, "num_experts_per_tok": 2}
PATCHES = {"num_input_channels": 2, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 16} | {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": 32,
}
SERIES = "past_values=float32[batch,32,2]"


def made(name: str, config: str, /, **settings: Any) -> hf.PreTrainedModel:
    """Return a model with random weights of standard deviation 0.2."""
    torch.manual_seed(0)
    model: hf.PreTrainedModel = getattr(hf, name)(getattr(hf, f"{config}Config")(**settings)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.2 + (weight if weight.dim() == 1 else 0.0))
    return model


def test_the_class_that_the_folder_names_is_opened(tmp_path: Path) -> None:
    model = made("T5EncoderModel", "T5", **T5)
    model.save_pretrained(tmp_path)
    base = open_folder(tmp_path)
    assert [record.name for record in base.inputs] == ["input_ids", "attention_mask"]
    assert base.notes == ()
    ids = torch.randint(3, 50, (3, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        expected = model(**inputs).last_hidden_state
    torch.testing.assert_close(base.run(inputs)["last_hidden_state"], expected, rtol=0, atol=1e-5)


CLASSES = [
    # a class with a head, and its base: the bare model of the architecture if the folder has its weights
    (("BertForMaskedLM", "Bert", SIZE | WORDS), "BertModel"),
    (("T5ForTokenClassification", "T5", T5), "T5EncoderModel"),
    (("WhisperForAudioClassification", "Whisper", WHISPER), "WhisperForAudioClassification"),
    # other classes stay unchanged
    (("CLIPTextModelWithProjection", "CLIPText", SIZE | WORDS), "CLIPTextModelWithProjection"),
]


@pytest.mark.parametrize(("saved", "opened"), CLASSES, ids=[case[0][0] for case in CLASSES])
def test_folders_of_task_models_open_their_base_class(
    saved: tuple[str, str, dict[str, Any]], opened: str, tmp_path: Path
) -> None:
    name, config, settings = saved
    model = made(name, config, **settings)
    model.save_pretrained(tmp_path)
    found, unused = _open_base(tmp_path)
    assert type(found).__name__ == opened
    expected = dict(model.named_parameters())
    for key, weight in found.named_parameters():
        assert any(name.endswith(key) and torch.equal(weight, own) for name, own in expected.items())
    assert bool(unused) == (opened != name)


def test_classes_found_only_in_their_module_are_opened(tmp_path: Path) -> None:
    made("WhisperModel", "Whisper", **WHISPER).get_encoder().save_pretrained(tmp_path)
    found, _ = _open_base(tmp_path)
    assert type(found).__name__ == "WhisperEncoder"


def test_a_part_without_an_auto_class_is_opened(tmp_path: Path) -> None:
    part = made(
        "MoonshineStreamingModel", "MoonshineStreaming", encoder_config=SIZE, **SIZE, num_key_value_heads=2
    ).get_encoder()
    part.save_pretrained(tmp_path)
    found, unused = _open_base(tmp_path)
    assert (type(found).__name__, unused) == ("MoonshineStreamingEncoder", [])


def rewritten(folder: Path, **changed: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))


def test_unknown_model_classes_are_refused(tmp_path: Path) -> None:
    model = made("T5EncoderModel", "T5", **T5)
    model.save_pretrained(tmp_path)
    rewritten(tmp_path, architectures=["T5EncoderOfOurs"])
    with pytest.raises(BaseModelError, match=r"names a class that the installed transformers does not have.*Ours"):
        open_folder(tmp_path)
    rewritten(tmp_path, auto_map={"AutoModel": "ours.T5EncoderOfOurs"})
    with pytest.raises(BaseModelError, match=r"custom model class, whose code is not run.*`T5EncoderOfOurs`"):
        open_folder(tmp_path)


def tokenizer(folder: Path, *, types: bool, **config: object) -> None:
    """Write a tokenizer of two words, which marks the texts of a pair or not."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, "[UNK]"))
    words.post_processor = TemplateProcessing(single="$A", pair=f"$A $B:{int(types)}", special_tokens=[])
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("types", "config", "typed"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"model_input_names": ["input_ids", "attention_mask"]}, False),
        (False, {"model_input_names": ["input_ids", "token_type_ids"]}, True),
        (True, {"tokenizer_class": "RobertaTokenizer"}, False),
        (False, {"tokenizer_class": "BertTokenizer"}, True),
        (True, {"tokenizer_class": "PreTrainedTokenizerFast"}, True),  # a class for any model is no evidence
    ],
)
def test_example_inputs_follow_the_tokenizer(types: bool, config: dict[str, Any], typed: bool, tmp_path: Path) -> None:
    tokenizer(tmp_path, types=types, **config)
    assert prepared_by(tmp_path).typed is typed
    model = made("BertModel", "Bert", **SIZE, **WORDS)
    found = obvious_inputs(model, prepared_by(tmp_path))
    assert found is not None
    assert ("token_type_ids" in found[0]) == typed


def test_one_type_of_tokens_is_no_input() -> None:
    model = made("RobertaModel", "Roberta", **SIZE, **WORDS, type_vocab_size=1)
    assert list(shapes(model, Prepared())) == ["input_ids", "attention_mask"]


def shapes(model: nn.Module, prepared: Prepared) -> Mapping[str, tuple[object, ...]]:
    """Return the shapes of the obvious inputs, with dynamic axes by name."""
    found = obvious_inputs(model, prepared)
    assert found is not None
    examples, axes = found
    return {
        name: tuple(axes[name].get(place, size) for place, size in enumerate(value.shape))
        for name, value in examples.items()
    }


def test_example_inputs_follow_the_processor(tmp_path: Path) -> None:
    size = {"height": 24, "width": 32}
    hf.ViTImageProcessorPil(size=size).save_pretrained(tmp_path / "image")
    hf.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path / "wave")
    hf.ASTFeatureExtractor(max_length=16, num_mel_bins=8).save_pretrained(tmp_path / "bands")
    image = made("ViTModel", "ViT", **SIZE, **IMAGE)
    assert shapes(image, prepared_by(tmp_path / "image")) == {"pixel_values": ("batch", 3, 24, 32)}
    wave = made("Wav2Vec2Model", "Wav2Vec2", **SIZE, conv_dim=(8,), conv_stride=(2,), conv_kernel=(3,))
    expected = {"input_values": ("batch", "samples"), "attention_mask": ("batch", "samples")}
    assert shapes(wave, prepared_by(tmp_path / "wave")) == expected
    bands = made("ASTModel", "AST", **SIZE, patch_size=4, max_length=16, num_mel_bins=8)
    assert shapes(bands, prepared_by(tmp_path / "bands")) == {"input_values": ("batch", 16, 8)}


TEXT = {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "sequence")}


@pytest.mark.parametrize(
    ("name", "config", "settings", "expected"),
    [
        ("ASTModel", "AST", {"max_length": 16, "num_mel_bins": 8}, {"input_values": ("batch", 16, 8)}),
        ("HubertModel", "Hubert", {"conv_dim": (8,)}, {"input_values": ("batch", "samples")}),
        ("LayoutLMModel", "LayoutLM", {"type_vocab_size": 1}, {**TEXT, "bbox": ("batch", "sequence", 4)}),
        ("TapasModel", "Tapas", {}, {**TEXT, "token_type_ids": ("batch", "sequence", 7)}),
        ("CLIPVisionModelWithProjection", "CLIPVision", IMAGE, {"pixel_values": ("batch", 3, 16, 16)}),
    ],
)
def test_example_inputs_have_the_documented_shapes(
    name: str, config: str, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    settings = SIZE | settings
    if config == "Hubert":
        settings |= {"conv_stride": (2,), "conv_kernel": (3,)}
    assert shapes(made(name, config, **settings), Prepared()) == expected


def test_described_inputs_replace_the_guessed_ones(tmp_path: Path) -> None:
    model = made("PatchTSTModel", "PatchTST", **PATCHES)
    model.save_pretrained(tmp_path / "folder")
    with pytest.raises(BaseModelError, match=r"cannot run on example inputs.*doesn't match.*`inputs=\[\"NAME"):
        open_folder(tmp_path / "folder")
    made("BertModel", "Bert", **SIZE, **WORDS).save_pretrained(tmp_path / "text")
    for folder, described, error, message in (
        (
            "folder",
            "past=float32[batch,32,2]",
            UsageError,
            r"do not match the arguments of the model.*found past.*past_values",
        ),
        ("folder", "past_values=float32[batch,32]", BaseModelError, r"cannot run on example inputs.*float32\[2, 32\]"),
        ("text", "input_ids=float32[batch,sequence]", BaseModelError, r"cannot run on example inputs.*FloatTensor"),
    ):
        with pytest.raises(error, match=message):
            ae.capture(tmp_path / folder, tmp_path / "model.pt", inputs=[described])
        assert not (tmp_path / "model.pt").exists()
    base = ae.capture(tmp_path / "folder", tmp_path / "model.pt", inputs=[SERIES])
    assert [(record.name, record.axes) for record in base.inputs] == [("past_values", ("batch", 32, 2))]
    values = torch.randn(3, 32, 2)
    with torch.inference_mode():
        expected = model(past_values=values).last_hidden_state
    found = base.torch.run({"past_values": values})["last_hidden_state"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert [site.name for site in base.sites.map.sublayers] == ["layers.0.attention", "layers.0.ffn"]


class Strided(nn.Module):
    """Requires at least 40 samples."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, 4, 40, 8)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return self.front(wave.unsqueeze(1))


def test_example_inputs_are_as_long_as_the_module_requires() -> None:
    examples, axes = described_inputs([InputRecord("wave", "float32", ("batch", "samples"), "values")])
    program, shape = capture(Strided(), examples, axes)
    assert shape == {"wave": ("batch", "samples")}
    (found,) = program.module()(wave=torch.randn(5, 400)).values()
    assert found.shape == (5, 4, 46)


WAVE = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3)} | {
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
"""Convolutions over 20 samples; the stride of both is 10."""


@pytest.mark.extended
def test_audio_models_are_built_at_accepted_lengths(tmp_path: Path) -> None:
    """Build from an archive of torch without lengths, and from the folder, at the lengths that the note advises."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = made("Wav2Vec2Model", "Wav2Vec2", **SIZE, **WAVE)

        def forward(self, input_values: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.model(input_values=input_values).last_hidden_state
            return hidden

    module, free = Hidden().eval(), torch.export.Dim.DYNAMIC
    shapes = {"input_values": {0: free, 1: free}}
    program = torch.export.export(module, (), {"input_values": torch.randn(2, 400)}, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "plain.pt2")
    module.model.save_pretrained(tmp_path / "folder")
    hf.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "folder")
    heard = Heard()
    ae.capture(tmp_path / "folder", tmp_path / "whole.pt", reporter=heard)
    (note,) = heard.notes
    assert note.startswith("accepts lengths 30 or more of `samples`"), "a condition of torch"
    assert "samples=20..29" in note
    # the model requires at least 20, so there is nothing to advise: a note would be a warning, which fails
    ae.capture(tmp_path / "folder", tmp_path / "short.pt", lengths=["samples=20..29"])
    for name, lengths in (("plain.pt2", Lengths(30)), ("whole.pt", Lengths(30)), ("short.pt", Lengths(20, 29))):
        (tmp_path / f"graph_{name}").mkdir()
        graph = ae.open_base(tmp_path / name).exported(tmp_path / f"graph_{name}")
        bundle = ae.build(tmp_path / name, [random_adapter("a", pfeiffer(), graph)], tmp_path / f"bundle_{name}")
        assert list(bundle.manifest.lengths.values()) == [lengths]


@pytest.mark.parametrize(
    ("name", "config", "settings"),
    [
        ("MixtralModel", "Mixtral", {"num_local_experts": 4}),
        ("Qwen2MoeModel", "Qwen2Moe", {"num_experts": 4, "moe_intermediate_size": 8}),
        ("GptOssModel", "GptOss", {"num_local_experts": 4, "head_dim": 8}),  # biases, and a separate gate
    ],
)
def test_dense_experts_are_exact(name: str, config: str, settings: dict[str, Any]) -> None:
    model = made(name, config, **SIZE, **EXPERTS, **settings)
    model.set_experts_implementation("eager")
    ids = torch.randint(3, 50, (2, 9))
    with torch.inference_mode():
        expected = model(ids).last_hidden_state
        with dense_experts(model):
            found = model(ids).last_hidden_state
            assert not torch.equal(found, expected) or found.abs().max() > 0.1
        again = model(ids).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(again, expected)


def test_mixture_of_experts_matches_transformers(tmp_path: Path) -> None:
    model = made("MixtralModel", "Mixtral", **SIZE, **EXPERTS, num_local_experts=4)
    model.save_pretrained(tmp_path / "folder")
    base = ae.capture(tmp_path / "folder", tmp_path / "model.pt")
    for rows, tokens in ((3, 9), (1, 1)):
        ids = torch.randint(3, 50, (rows, tokens))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            expected = model(**inputs).last_hidden_state
        found = base.torch.run(inputs)["last_hidden_state"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert base.sites.map.coverage.unplaced == ()
    assert base.sites.not_placed == ("layers.0.mlp.gate", "layers.0.mlp.experts")  # in a sublayer, and no linear sites
    assert [site.name for site in base.sites.map.sublayers] == ["layers.0.attention", "layers.0.ffn"]


class TwoTowers(nn.Module):
    """A module with one part that reads none of the given inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor, pixels: torch.Tensor | None = None) -> torch.Tensor:
        return self.text(x) if pixels is None else self.text(x) + self.image[0](pixels)


def test_modules_that_the_inputs_do_not_reach_are_named(tmp_path: Path) -> None:
    save_base(TwoTowers(), {"x": torch.ones(2, 4)}, tmp_path / "one.pt")
    assert load_base(tmp_path / "one.pt").notes == ("no output depends on `image` when the inputs are `x`",)
    save_base(TwoTowers(), {"x": torch.ones(2, 4), "pixels": torch.ones(2, 4)}, tmp_path / "both.pt")
    assert "`image.1` when the inputs are `x`, `pixels`" in load_base(tmp_path / "both.pt").notes[0]


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Quiet(nn.Module):
    """A dropout that `eval` mode disables."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


def test_models_that_are_random_in_eval_mode_are_refused(tmp_path: Path) -> None:
    made("ViTMAEModel", "ViTMAE", **SIZE, **IMAGE).save_pretrained(tmp_path / "folder")
    with pytest.raises(BaseModelError, match="is random in `eval` mode: two runs on the same inputs differ"):
        capture_folder(tmp_path / "folder", tmp_path / "model.pt")
    save_base(Quiet(), {"x": torch.ones(2, 4)}, tmp_path / "quiet.pt")
    torch.export.save(torch.export.export(Noisy(), (torch.ones(2, 4),)), tmp_path / "noisy.pt")
    with pytest.raises(BaseModelError, match=r"is random in `eval` mode: each run draws new numbers.*`rand_like`"):
        load_base(tmp_path / "noisy.pt")
