"""Decoders with their caches, compared with `generate` of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiers import some_quick
from torch import Tensor

import adapter_export as ae
from adapter_export.errors import BaseModelError, RotaryEmbeddingError
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.discover import discover
from adapter_export.torch_backend.base.huggingface_folder import capture_folder, generates, live_folder
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.torch_backend.torch_runner import TorchRunner

WORDS, TOKENS = 50, 6

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
COUNTS = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS: Mapping[str, hf.PretrainedConfig] = {
    # grouped heads, rotary positions
    "llama": hf.LlamaConfig(**SIZE, **COUNTS, num_key_value_heads=1, max_position_embeddings=40),
    # a position table, and a language head that shares the word table
    "gpt2": hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=40, **COUNTS),
}


@pytest.fixture(scope="module", params=some_quick(MODELS, "gpt2"))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(MODELS[request.param])
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 1.0 if weight.dim() == 1 else 0.0, 0.2)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(folder: Path) -> TorchBase:
    capture_folder(folder, folder / "model.pt")
    return load_base(folder / "model.pt")


def empty_cache(base: TorchBase, rows: int) -> dict[str, Tensor]:
    caches = [record for record in base.inputs if record.role == "cache"]
    return {
        record.name: torch.zeros(rows, *(axis if isinstance(axis, int) else 0 for axis in record.axes[1:]))
        for record in caches
    }


def test_decoder_inputs_and_outputs_describe_a_cache(base):
    assert [record.name for record in base.inputs[:4]] == [
        "input_ids",
        "attention_mask",
        "past_key_values.0.key",
        "past_key_values.0.value",
    ]
    assert base.inputs[1].axes == ("batch", "past_sequence + sequence")
    for record in base.inputs[2:]:
        assert (record.role, record.next) == ("cache", record.name.replace("past_key_values", "present"))
        assert record.axes[0::2] == ("batch", "past_sequence")
    assert base.outputs[0].axes == ("batch", "sequence", WORDS)
    assert [output.axes[2] for output in base.outputs[1:]] == ["past_sequence + sequence"] * 4
    assert [site.name for site in discover(flow_graph(base.flat)).sublayers] == [
        f"layers.{layer}.{role}" for layer in (0, 1) for role in ("attention", "ffn")
    ]


def test_decoder_generates_what_transformers_generates(base, folder):
    ids = torch.tensor([[5, 9, 33, 41], [0, 0, 7, 20]])
    mask = (ids > 0).long()
    model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    options = {"do_sample": False, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    expected = model.generate(ids, attention_mask=mask, eos_token_id=None, **options)
    tokens, fresh, cache = ids, ids, empty_cache(base, 2)
    with torch.no_grad():
        for _ in range(TOKENS):
            outputs = base.run({"input_ids": fresh, "attention_mask": mask, **cache})
            cache = {record.name: outputs[record.next] for record in base.inputs if record.next}
            fresh = outputs["logits"][:, -1].argmax(-1, keepdim=True)
            tokens, mask = torch.cat([tokens, fresh], 1), torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    assert tokens.tolist() == expected.tolist()


def test_the_live_model_of_its_folder_has_the_same_outputs(base, folder):
    case = input_cases(base.inputs, seed=0, max_tokens=9)[-1]
    expected = TorchRunner(base).run(case.arrays)
    for name, value in live_folder(folder, base)(case.arrays).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=2e-5, err_msg=name)


def test_a_text_in_two_parts_is_the_text_at_once(base):
    ids, whole = torch.tensor([[5, 9, 33, 41, 7]]), torch.ones(1, 5, dtype=torch.long)
    with torch.no_grad():
        at_once = base.run({"input_ids": ids, "attention_mask": whole, **empty_cache(base, 1)})
        first = base.run({"input_ids": ids[:, :2], "attention_mask": whole[:, :2], **empty_cache(base, 1)})
        cache = {record.name: first[record.next] for record in base.inputs if record.next}
        second = base.run({"input_ids": ids[:, 2:], "attention_mask": whole, **cache})
    torch.testing.assert_close(second["logits"], at_once["logits"][:, 2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(second["present.1.key"], at_once["present.1.key"], rtol=0, atol=1e-5)


def test_an_adapter_of_the_whole_model_is_one_of_the_archive(base, folder, tmp_path):
    """The fingerprints agree, or the runner would reject it, and so do the results."""
    ids, rng = torch.tensor([[5, 9, 33, 41]]), np.random.default_rng(0)
    model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    with ae.attach(model, kind="houlsby", bottleneck=2) as attached, torch.no_grad():
        for tensor in attached.tensors().values():
            tensor.copy_(torch.from_numpy(rng.normal(0, 0.2, tensor.shape)))
        expected, adapter = model(input_ids=ids).logits, attached.to_adapter()
    cache = {name: value.numpy() for name, value in empty_cache(base, 1).items()}
    given = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 4), np.int64), **cache}
    runner = TorchRunner(base)
    assert np.abs(runner.run(given)["logits"] - expected.numpy()).max() > 0.05
    np.testing.assert_allclose(runner.run(given, adapter)["logits"], expected, rtol=0, atol=2e-5)


def test_exported_decoder_matches_torch_with_and_without_past(base, tmp_path):
    export_onnx(base, tmp_path / "model.onnx")
    exported = open_onnx(tmp_path / "model.onnx")
    assert (exported.inputs, exported.outputs) == (base.inputs, base.outputs)
    session, runner = open_session(exported.model, tmp_path), TorchRunner(base)
    for case in input_cases(base.inputs, seed=0, max_tokens=9):
        expected, found = runner.run(case.arrays), run_session(session, case.arrays)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-5, err_msg=f"{case.name} {name}")


def test_a_model_that_keeps_something_else_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 1}
    hf.MambaForCausalLM(hf.MambaConfig(vocab_size=WORDS, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match=r"keys and values of each layer.*Capture the bare model.*`bare=True`"):
        capture_folder(tmp_path, tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("LlamaForCausalLM", "llama", True),
        ("GPT2LMHeadModel", "gpt2", True),
        ("T5ForConditionalGeneration", "t5", True),
        ("MarianMTModel", "marian", True),
        ("WhisperForConditionalGeneration", "whisper", True),
        ("NewForCausalLM", "unknown", True),  # refused when it is opened, instead of captured without its head
        ("LlamaModel", "llama", False),
        ("LlamaForSequenceClassification", "llama", False),
        ("BertForMaskedLM", "bert", False),
        ("T5EncoderModel", "t5", False),
        ("VisionEncoderDecoderModel", "vision-encoder-decoder", False),
    ],
)
def test_model_classes_decide_whether_a_base_generates(name: str, kind: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name], "model_type": kind}))
    assert generates(tmp_path) is expected
    (tmp_path / "modules.json").write_text("[]")
    assert not generates(tmp_path), "sentence-transformers embeds or ranks texts"


_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
_LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16}
_CHANGING = {
    "dynamic": hf.LlamaConfig(**SIZE, **COUNTS, max_position_embeddings=40, rope_parameters=_DYNAMIC),
    "longrope": hf.Phi3Config(
        **SIZE,
        **COUNTS,
        max_position_embeddings=40,
        original_max_position_embeddings=16,
        rope_parameters=_LONG | {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    ),
}


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", _CHANGING)
def test_rotary_frequencies_that_change_with_the_length_are_named(name: str, bare: bool, tmp_path: Path) -> None:
    """The one is a branch on positions that torch cannot export, the other overwrites a buffer."""
    hf.AutoModelForCausalLM.from_config(_CHANGING[name]).save_pretrained(tmp_path / "hf")
    with pytest.raises(RotaryEmbeddingError, match=rf"rotary_emb`: .*RoPE.*found `rope_type` `{name}`") as caught:
        capture_folder(tmp_path / "hf", tmp_path / "base.pt", bare=bare)
    assert "bare=True" not in str(caught.value)


def test_constant_rotary_frequencies_are_captured(tmp_path: Path) -> None:
    scaled = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 20}
    config = hf.LlamaConfig(**SIZE, **COUNTS, max_position_embeddings=40, rope_parameters=scaled)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "hf")
    capture_folder(tmp_path / "hf", tmp_path / "base.pt")
    assert load_base(tmp_path / "base.pt").generation.end == (2,)


def test_a_folder_without_a_language_head_is_refused(tmp_path):
    """Otherwise its weights would be random."""
    hf.LlamaForCausalLM(MODELS["llama"]).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"would be random; found `lm_head.weight`.*bare model.*`bare=True`"):
        capture_folder(tmp_path, tmp_path / "model.pt")
