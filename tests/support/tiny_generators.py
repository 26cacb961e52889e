"""Tiny language models with random weights, their PEFT adapters, and bundles of both that generate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from kept import kept
from published_chats import byte_tokenizer
from tiny_llama import example

import adapter_export as ae

WORDS, END, LONGEST = 96, 95, 48
LONG_CONTEXT = 2048
ADAPTERS: Mapping[str, tuple[str, ...]] = {"a": ("q_proj", "v_proj"), "b": ("o_proj", "up_proj", "down_proj")}
"""PEFT adapters by name, and the layers that they change."""

_CONFIG: Mapping[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LONGEST,
    "bos_token_id": 1,
    "eos_token_id": END,
    "pad_token_id": 0,
}
MODELS: Mapping[str, Callable[[], hf.PreTrainedModel]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_CONFIG)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_CONFIG, head_dim=8, tie_word_embeddings=False)),
}
CHAT_TEMPLATE = (
    "{% set known = {'system': 'w10', 'user': 'w11', 'assistant': 'w12', 'tool': 'w13'} %}"
    "{% if tools %}w14 {{ tools | tojson }} {% endif %}"
    "{% for message in messages %}"
    "{% if message.role not in known %}{{ raise_exception('unknown role ' ~ message.role) }}{% endif %}"
    "{{ known[message.role] }} {{ message.content }}"
    "{% for call in message.tool_calls or [] %}w15 {{ call.function.name }} {{ call.function.arguments | tojson }}"
    "{% endfor %}"
    " w19 {% endfor %}"
    "{% if loud %}w20 {% endif %}{% if add_generation_prompt %}w12 {% endif %}"
)
"""Chat template of the model `chat`: a word for each role, and one for the end of a message."""

_LONG: Mapping[str, Callable[[], hf.PreTrainedModel]] = {
    "long": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**{**_CONFIG, "max_position_embeddings": LONG_CONTEXT})),
}
"""Models for tests of memory and time."""


_CHAT = {"chat": MODELS["llama"]}

BYTES, BYTES_CONTEXT = 416, 640
"""Logits of the model `bytes`, more than its tokenizer has tokens, and its longest text."""

BYTES_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_OF_BYTES: Mapping[str, Any] = {"vocab_size": BYTES, "max_position_embeddings": BYTES_CONTEXT, "eos_token_id": 1}
_BYTES: Mapping[str, Callable[[], hf.PreTrainedModel]] = {
    "bytes": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**{**_CONFIG, "bos_token_id": 0, **_OF_BYTES})),
}
"""A model whose tokens are bytes and some longer words, so that it can write any text."""


def generating(factory: pytest.TempPathFactory, kind: str) -> Path:
    """A folder with the model `hf`, its PEFT adapters, and the `bundle` of all, with slots and a bank."""
    return kept(factory, f"generating_{kind}", _write, kind)


def peft_model(folder: Path, name: str | None) -> Any:
    """The model of a folder in transformers, with one of its adapters in PEFT."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder / "hf")
    return (model if name is None else peft.PeftModel.from_pretrained(model, folder / name)).eval()


def _write(folder: Path, kind: str) -> None:
    torch.manual_seed(0)
    example("make_tiny").save_llama(folder / "hf")  # for its tokenizer, which has a word for each number
    model = {**MODELS, **_LONG, **_CHAT, **_BYTES}[kind]()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(folder / "hf")
    if kind in _CHAT:
        (folder / "hf" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    if kind in _BYTES:
        byte_tokenizer().save_pretrained(folder / "hf")
        (folder / "hf" / "chat_template.jinja").write_text(BYTES_TEMPLATE)
    base = ae.capture(folder / "hf", folder / "base.pt")
    adapters = []
    for name, layers in ADAPTERS.items():
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, target_modules=list(layers))
        adapted = peft.get_peft_model(hf.AutoModelForCausalLM.from_pretrained(folder / "hf"), config)
        with torch.no_grad():
            for parameter, weight in adapted.named_parameters():
                if "lora" in parameter:
                    weight.normal_(0, 0.2)
        adapted.save_pretrained(folder / name)
        adapters.append(ae.import_peft(folder / name, base, name=name))
    ae.build(base, adapters, folder / "bundle", variants=("slots", "bank"))
