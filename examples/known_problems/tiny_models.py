"""Tiny models of real architectures with random weights, and adapters that PEFT saved for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}
IDS = torch.arange(3, 11)[None]


def llama(layers: int = 2) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": layers}, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config).eval()


def bert(labels: int) -> Any:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=labels)).eval()


def adapted(model: Any, seed: int = 1, *, trained: bool = True, **options: Any) -> Any:
    """Return a PEFT model with a LoRA; its trained values have a standard deviation of 0.2."""
    options = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], **options}
    made = peft.get_peft_model(model, peft.LoraConfig(**options))
    return filled(made, seed) if trained else made


def filled(model: Any, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return model.eval()


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    tensors = change(load_file(folder / TENSORS))
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / TENSORS)
    return folder


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def outputs(model: Any, ids: torch.Tensor = IDS, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        first: torch.Tensor = model.eval()(ids, **options)[0]
    return first
