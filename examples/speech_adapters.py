"""A Whisper with two LoRAs: one bundle writes the texts of both in one batch, token by token as PEFT.

    python examples/speech_adapters.py

The model has Whisper's architecture, random weights and windows of one second, so that the example needs no download.
Replace its folder by that of a trained one, such as a copy of `openai/whisper-tiny`, and the adapters by yours.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

import adapter_export as ae
from adapter_export.runtime import Bundle

RATE, START, END, WORDS = 16_000, 90, 91, 100
SIZES = {"d_model": 32, "num_mel_bins": 16, "vocab_size": WORDS, "max_source_positions": 50, "init_std": 0.2}
HALVES = {f"{half}_{name}": 2 for half in ("encoder", "decoder") for name in ("layers", "attention_heads")}
TOKENS = {"decoder_start_token_id": START, "bos_token_id": START, "eos_token_id": END, "pad_token_id": END}
GENERATION = {
    "lang_to_id": {"<|de|>": 92, "<|en|>": 93},
    "task_to_id": {"transcribe": 94, "translate": 95},
    "no_timestamps_token_id": 96,
    "is_multilingual": True,
    "suppress_tokens": list(range(START, WORDS)),
    "begin_suppress_tokens": [END],
    "max_length": 36,
}


def main() -> None:
    """Build the bundle, and compare its texts with those of PEFT."""
    folder = Path(mkdtemp())
    try:
        _save_model(folder / "whisper")
        base = ae.capture(folder / "whisper", folder / "whisper.pt")
        adapters = [ae.import_peft(_save_lora(folder, name), base, name=name) for name in ("clinic", "court")]
        ae.build(base, adapters, folder / "bundle")
        sounds = [_sound(seed) for seed in range(3)]
        names = ["clinic", "court", None]
        session = Bundle.open(folder / "bundle").session()
        found = session.transcribe(sounds, adapters=names, language="de")
        for name, tokens, samples in zip(names, found, sounds, strict=True):
            assert tokens == _by_peft(folder, name, samples), name
            print(f"{name or 'base'}: {tokens[:8]}… as in PEFT")
    finally:
        shutil.rmtree(folder)


def _save_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = WhisperConfig(**SIZES, **HALVES, **TOKENS, max_target_positions=40)
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({**TOKENS, **GENERATION}))
    WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(folder)


def _save_lora(folder: Path, name: str) -> Path:
    model = WhisperForConditionalGeneration.from_pretrained(folder / "whisper")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "fc1"]))
    with torch.no_grad():
        for weight, parameter in adapted.named_parameters():
            if "lora" in weight:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(folder / name)
    return folder / name


def _sound(seed: int) -> np.ndarray:
    random, times = np.random.default_rng(seed), np.arange(RATE // 2) / RATE
    tone = np.sin(2 * np.pi * 200 * (seed + 1) * times)
    return (0.4 * tone + random.normal(0, 0.1, len(times))).astype(np.float32)


def _by_peft(folder: Path, name: str | None, samples: np.ndarray) -> list[int]:
    model: Any = WhisperForConditionalGeneration.from_pretrained(folder / "whisper")
    model = model if name is None else PeftModel.from_pretrained(model, str(folder / name))
    extractor = WhisperFeatureExtractor.from_pretrained(folder / "whisper")
    features = extractor(samples, sampling_rate=RATE, return_tensors="pt").input_features
    tokens: list[int] = model.eval().generate(input_features=features, language="de")[0].tolist()
    return tokens


if __name__ == "__main__":
    main()
