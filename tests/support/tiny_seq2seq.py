"""Tiny encoder–decoders with random weights, their PEFT adapters in both halves, and bundles of both."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from kept import kept

import adapter_export as ae

WORDS, WIDTH, PADDING = 60, 32, 0
ENDS = {"t5": (4, 59), "bart": (7, 4), "marian": (3, 36)}
"""The seed of the weights and the token that ends a text, by kind; each text of the tests comes to that token."""
ADAPTERS: Mapping[str, Sequence[str]] = {"few": ("q", "v"), "all": ("q", "v", "k", "o", "wi", "wo")}
"""PEFT adapters by name, and the layers of each half that they change, as T5 calls them."""

_COMMON = {"d_model": WIDTH, "vocab_size": WORDS} | {
    "pad_token_id": PADDING,
    "decoder_start_token_id": PADDING,
}
_HALVES = {
    f"{half}_{name}": count
    for half in ("encoder", "decoder")
    for name, count in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 48))
}
_BART_LAYERS = {"q": "q_proj", "v": "v_proj", "k": "k_proj", "o": "out_proj", "wi": "fc1", "wo": "fc2"}


def _t5(end: int) -> hf.PreTrainedModel:
    config = hf.T5Config(
        **_COMMON, eos_token_id=end, d_kv=8, d_ff=48, num_layers=1, num_heads=4, tie_word_embeddings=False
    )
    return hf.T5ForConditionalGeneration(config)


def _bart(end: int) -> hf.PreTrainedModel:
    config = hf.BartConfig(**_COMMON, eos_token_id=end, **_HALVES, max_position_embeddings=40, forced_eos_token_id=None)
    return hf.BartForConditionalGeneration(config)


def _marian(end: int) -> hf.PreTrainedModel:
    config = hf.MarianConfig(
        **_COMMON, eos_token_id=end, **_HALVES, max_position_embeddings=40, forced_eos_token_id=None
    )
    return hf.MarianMTModel(config)


MODELS: Mapping[str, Callable[[int], hf.PreTrainedModel]] = {"t5": _t5, "bart": _bart, "marian": _marian}


def seq2seq(factory: pytest.TempPathFactory, kind: str) -> Path:
    """A folder with the model `hf`, its PEFT adapters, the archive `base.pt`, and the `bundle` of all."""
    return kept(factory, f"seq2seq_{kind}", _write, kind)


def peft_model(folder: Path, name: str | None) -> Any:
    """The model of a folder in transformers, with one of its adapters in PEFT."""
    model = hf.AutoModelForSeq2SeqLM.from_pretrained(folder / "hf")
    with _quiet():
        return (model if name is None else peft.PeftModel.from_pretrained(model, folder / name)).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore that PEFT asks transformers by a name that is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _write(folder: Path, kind: str) -> None:

    seed, end = ENDS[kind]
    torch.manual_seed(seed)
    model = MODELS[kind](end).eval()
    _randomize(model, "")
    with torch.no_grad():  # a token that depends only on the last one repeats forever
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("embed_positions" in name or "relative" in name):
                parameter.mul_(8)
    model.save_pretrained(folder / "hf")
    base = ae.capture(folder / "hf", folder / "base.pt")
    adapters = []
    for name, layers in ADAPTERS.items():
        targets = [own if kind == "t5" else _BART_LAYERS[own] for own in layers]
        config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=len(name), lora_alpha=8, target_modules=targets)
        model = hf.AutoModelForSeq2SeqLM.from_pretrained(folder / "hf")
        with _quiet():
            adapted = peft.get_peft_model(model, config)
        _randomize(adapted, "lora")
        adapted.save_pretrained(folder / name)
        adapters.append(ae.import_peft(folder / name, base, name=name))
    ae.build(base, adapters, folder / "bundle")


def _randomize(model: torch.nn.Module, which: str) -> None:
    """Draw parameters with a standard deviation of 0.2, those of norms around 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if which in name and parameter.requires_grad:
                around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(torch.randn_like(parameter) * 0.2 + around)
