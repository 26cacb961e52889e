"""A tiny Whisper with random weights, its feature extractor and tokenizer, PEFT adapters and a bundle."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from kept import kept
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import adapter_export as ae

RATE, SECONDS, WORDS = 16_000, 1, 110
START, END, PADDING = 50, 40, 0
LANGUAGES = {"<|de|>": 51, "<|en|>": 52, "<|fr|>": 53}
TASKS = {"transcribe": 54, "translate": 55}
NO_TIMESTAMPS = 56
"""All tokens behind this one are times, 0.02 s apart."""
ADAPTERS: Mapping[str, Sequence[str]] = {
    "few": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}
"""PEFT adapters by name, and the layers of both halves that they change."""
BOTTLENECK = "houlsby"


def tiny_whisper(factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `hf`, its PEFT adapters, the archive `base.pt`, and the `bundle` of all."""
    return kept(factory, "tiny_whisper", _write)


def whisper_model(folder: Path, name: str | None = None) -> Any:
    """The model of a folder in transformers, with one of its adapters in PEFT, or the bottlenecks by hooks."""
    model = hf.WhisperForConditionalGeneration.from_pretrained(folder / "hf")
    if name == BOTTLENECK:
        _hook_bottlenecks(model, load_file(folder / name / "weights.safetensors"))
    elif name is not None:
        model = peft.PeftModel.from_pretrained(model, folder / name)
    return model.eval()


def _hook_bottlenecks(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Add `up(gelu(down(h)))` behind the last layer of each sublayer, of self-attention and feed-forward."""
    for site in {name.rsplit(".", 2)[0] for name in weights}:
        (down, inner), (up, outer) = (
            (weights[f"{site}.{part}.weight"], weights[f"{site}.{part}.bias"]) for part in ("down", "up")
        )
        path = f"model.{site}".removesuffix(".attention").removesuffix(".ffn")
        layer = model.get_submodule(f"{path}.fc2" if site.endswith("ffn") else f"{path}.self_attn.out_proj")
        layer.register_forward_hook(
            lambda _module, _inputs, h, down=down, inner=inner, up=up, outer=outer: (
                h + torch.nn.functional.gelu(h @ down + inner) @ up + outer
            )
        )


def sound(seed: int, seconds: float = 0.6) -> np.ndarray:
    """Samples of a tone in noise."""
    random, times = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * 180 * (seed + 1) * times)
    return (0.4 * tone + random.normal(0, 0.1, len(times))).clip(-1, 1).astype(np.float32)


def wav(samples: np.ndarray) -> bytes:
    """The bytes of a WAV file, 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def save_whisper(folder: Path, **settings: Any) -> Any:
    """Save a tiny Whisper with its processor and tokenizer; `settings` change those of generation."""
    torch.manual_seed(5)
    config = hf.WhisperConfig(
        d_model=16,
        **{f"{half}_{name}": count for half in ("encoder", "decoder") for name, count in _SIZES},
        num_mel_bins=8,
        vocab_size=WORDS,
        max_source_positions=50 * SECONDS,
        max_target_positions=24,
        pad_token_id=PADDING,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=START,
    )
    model = hf.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(torch.randn_like(parameter) * 0.2 + around)
            if "decoder.embed_positions" in name:  # a token that depends only on the last one repeats forever
                parameter.mul_(3)
            if "encoder_attn" in name and "weight" in name:  # a decoder that hears: texts differ by their sounds
                parameter.mul_(2)
        model.model.decoder.embed_tokens.weight[NO_TIMESTAMPS:] *= 0.1  # seldom written without being asked for
    known = {"lang_to_id": LANGUAGES, "task_to_id": TASKS, "is_multilingual": True} | {
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "suppress_tokens": [*range(50, NO_TIMESTAMPS), 7],
        "begin_suppress_tokens": [END, 9],
        "forced_decoder_ids": [[1, None], [2, TASKS["transcribe"]]],
        "max_length": 24,
    }
    model.save_pretrained(folder)
    path = folder / "generation_config.json"
    changed = json.loads(path.read_text()) | known | {"_from_model_config": None} | settings
    path.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))
    hf.WhisperFeatureExtractor(feature_size=8, chunk_length=SECONDS).save_pretrained(folder)
    special = {START: "<|startoftranscript|>", END: "<|endoftext|>", NO_TIMESTAMPS: "<|notimestamps|>"} | {
        token: name for name, token in LANGUAGES.items()
    }
    words = Tokenizer(WordLevel({special.get(number, f"w{number}"): number for number in range(WORDS)}, unk_token="w3"))
    words.pre_tokenizer = Whitespace()
    words.add_special_tokens(list(special.values()))
    words.save(str(folder / "tokenizer.json"))
    return model


_SIZES = (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))


def _write(folder: Path) -> None:
    save_whisper(folder / "hf")
    base = ae.capture(folder / "hf", folder / "base.pt")
    adapters = []
    for name, layers in ADAPTERS.items():
        config = peft.LoraConfig(r=len(name), lora_alpha=8, target_modules=list(layers))
        adapted = peft.get_peft_model(hf.WhisperForConditionalGeneration.from_pretrained(folder / "hf"), config)
        with torch.no_grad():
            for weight, parameter in adapted.named_parameters():
                if "lora" in weight:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
        adapted.save_pretrained(folder / name)
        adapters.append(ae.import_peft(folder / name, base, name=name))
    with ae.attach(base, kind=BOTTLENECK, bottleneck=4, activation="gelu") as attached:
        with torch.no_grad():
            for parameter in attached.learned().values():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        attached.save(folder / BOTTLENECK)
    ae.build(base, [*adapters, folder / BOTTLENECK], folder / "bundle")
