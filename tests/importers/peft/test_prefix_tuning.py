"""Prefix tuning of decoders equals PEFT's forward, in single rows and in batches with other prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from once import once

import adapter_export as ae
from adapter_export.bases.adapters import load_adapter
from adapter_export.errors import AdapterError, UsageError
from adapter_export.plugins.formats.commands.import_.peft import import_peft
from adapter_export.runtime import Bundle, Decoding, Session
from adapter_export.torch_backend.attach import attach

# PEFT passes its cache by a name that transformers 5.24 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")

WORDS, LONGEST, COUNT = 60, 64, 12
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES = {"vocab_size": WORDS, "hidden_size": 32, "max_position_embeddings": LONGEST}
NO_ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
MODELS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, **SIZES, **NO_ENDS)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED, **SIZES, **NO_ENDS)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=LONGEST, **NO_ENDS)
    ),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, **SIZES, **NO_ENDS, sliding_window=8)),
}
PREFIXES: Mapping[str, Mapping[str, object]] = {
    "short": {"num_virtual_tokens": 4},
    "projected": {"num_virtual_tokens": 7, "prefix_projection": True, "encoder_hidden_size": 16},
}
PROMPTS = [[5, 9, 33, 41], [17], [40, 2, 8, 50, 51, 52, 7, 12, 30], [5, 9, 33, 41]]
CHOICES = ["short", "projected", None, "short"]


def made(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(0, 0.2)
    model.save_pretrained(folder / "model")
    for name, options in PREFIXES.items():
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", **options)
        adapted = peft.get_peft_model(hf.AutoModelForCausalLM.from_pretrained(folder / "model"), config)
        with torch.no_grad():
            for tensor in adapted.prompt_encoder.parameters():
                tensor.normal_(0, 1)  # keys of 0.2 hardly move a softmax
        adapted.save_pretrained(folder / name)
    ae.capture(folder / "model", folder / "base.pt")
    return folder


def of_peft(folder: Path, name: str | None) -> torch.nn.Module:
    base = hf.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    return base if name is None else peft.PeftModel.from_pretrained(base, folder / name).eval()


def logits_of(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    row = torch.tensor([ids])
    with torch.no_grad():
        return model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0].numpy()


def greedy(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(COUNT):
        ids.append(int(logits_of(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module", params=["llama", pytest.param("qwen2", marks=pytest.mark.extended), "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(path: Path) -> None:
        made(path, request.param)
        adapters = [
            import_peft(path / name, path / "base.pt", path / f"{name}_adapter", name=name) for name in PREFIXES
        ]
        ae.build(path / "base.pt", adapters, path / "bundle", variants=["slots", "inputs", "bank"])

    return once(tmp_path_factory, f"prefix_{request.param}", make)


@pytest.fixture(scope="module")
def session(folder: Path) -> Session:
    return Bundle.open(folder / "bundle").session()


@pytest.mark.parametrize("name", [None, *PREFIXES])
def test_logits_are_those_of_peft(folder: Path, session: Session, name: str | None) -> None:
    manifest, ids = Bundle.open(folder / "bundle").manifest, PROMPTS[2]
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    for record in manifest.inputs:
        if record.role == "cache":
            feeds[record.name] = np.zeros(
                [axis if isinstance(axis, int) else 0 for axis in (1, *record.axes[1:])], "f4"
            )
    outputs = session.run(feeds, name)
    np.testing.assert_allclose(outputs["logits"][0], logits_of(of_peft(folder, name), ids), atol=1e-5)
    assert outputs["present.0.key"].shape[2] == len(ids)


def test_rows_with_other_prefixes_and_lengths_share_calls(folder: Path, session: Session) -> None:
    expected = [greedy(of_peft(folder, name), prompt) for name, prompt in zip(CHOICES, PROMPTS, strict=True)]
    assert session.generate(PROMPTS, adapters=CHOICES, decoding=Decoding(COUNT)) == expected
    assert expected[0] != greedy(of_peft(folder, None), PROMPTS[0]) or expected[1] != expected[0]


def test_padded_rows_are_those_of_transformers_with_the_cache_of_peft(folder: Path, session: Session) -> None:
    prompts, model = PROMPTS[1:3], of_peft(folder, "short")
    width = max(map(len, prompts))
    ids, mask = (torch.zeros(len(prompts), width, dtype=torch.long) for _ in range(2))
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = torch.tensor(prompt), 1
    seen = torch.ones(len(prompts), 4, dtype=torch.long)
    written = model.get_base_model().generate(
        input_ids=torch.cat([seen, ids], 1),
        attention_mask=torch.cat([seen, mask], 1),
        past_key_values=model.get_prompt(len(prompts)),
        max_new_tokens=COUNT,
        do_sample=False,
    )
    expected = written[:, 4 + width :].tolist()
    assert session.generate(prompts, "short", decoding=Decoding(COUNT)) == expected


def test_texts_leave_room_for_the_longest_prefix(folder: Path, session: Session) -> None:
    assert session.decoder.inputs.longest == LONGEST - 7
    with pytest.raises(UsageError, match="7 tokens belong to a prefix"):
        ae.build(folder / "base.pt", {"projected": folder / "projected_adapter"}, folder / "no", max_tokens=LONGEST)


def test_a_prefix_cannot_be_attached(folder: Path) -> None:
    base = ae.open_base(folder / "base.pt")
    with pytest.raises(AdapterError, match="cannot be attached"):
        attach(base.torch, load_adapter(folder / "short_adapter"))


@pytest.mark.extended
def test_a_window_of_attention_is_refused(tmp_path: Path) -> None:
    made(tmp_path, "mistral")
    adapter = import_peft(tmp_path / "short", tmp_path / "base.pt")
    with pytest.raises(AdapterError, match="attends within a window"):
        ae.build(tmp_path / "base.pt", [adapter], tmp_path / "bundle")
