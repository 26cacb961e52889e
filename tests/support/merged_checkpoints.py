"""Tiny models of transformers, and checkpoints made from them: merged by PEFT, or with changed weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as hf

STD, RANK, LABELS = 0.2, 3, 4
"""Standard deviation of random weights, rank of a LoRA, and number of labels."""

_SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_SIZE |= {"vocab_size": 60, "max_position_embeddings": 64, "pad_token_id": 0}
_ENDS: dict[str, Any] = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
_VIT: dict[str, Any] = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
CONFIGS: dict[str, hf.PretrainedConfig] = {
    "bert": hf.BertConfig(**_SIZE),
    "gpt2": hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=64, pad_token_id=0),
    "llama": hf.LlamaConfig(**_SIZE, num_key_value_heads=4),
    "modernbert": hf.ModernBertConfig(**_SIZE, **_ENDS),
    "albert": hf.AlbertConfig(**_SIZE, embedding_size=16),
    "deberta": hf.DebertaV2Config(**_SIZE, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "vit": hf.ViTConfig(**_VIT, num_attention_heads=4, intermediate_size=48),
}
TARGETS: dict[str, list[str]] = {
    "bert": ["query", "dense"],
    "gpt2": ["c_attn", "c_fc"],
    "llama": ["q_proj", "down_proj"],
    "modernbert": ["Wqkv", "Wo"],
    "albert": ["query", "ffn"],
    "deberta": ["intermediate.dense"],
    "vit": ["q_proj", "fc1"],
}
"""Layers that a LoRA changes."""

AUTO = {"image": "AutoModelForImageClassification", "text": "AutoModelForSequenceClassification"}


def write_base(place: Path, name: str) -> None:
    """Write a bare model with random weights to `place/base`."""
    torch.manual_seed(0)
    model = hf.AutoModel.from_config(CONFIGS[name])
    _randomize(model, lambda _: True)
    model.save_pretrained(place / "base")


def _randomize(model: torch.nn.Module, chosen: Callable[[str], bool]) -> None:
    """Draw the parameters that are chosen by name, factors of norms around 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if chosen(name):
                is_scale = parameter.dim() == 1 and bool((parameter == 1).all())
                parameter.copy_(STD * torch.randn_like(parameter) + float(is_scale))


def classifier(place: Path, name: str) -> Any:
    """Return the base of `place/base` with a random head."""
    auto = AUTO["image" if name == "vit" else "text"]
    settings = {"num_labels": LABELS, "problem_type": "single_label_classification"}
    model = getattr(hf, auto).from_pretrained(place / "base", **settings)
    _randomize(model, lambda each: not each.startswith(f"{model.base_model_prefix}."))
    return model.eval()


def adapted(model: Any, name: str, **options: Any) -> Any:
    """Return a model with a random LoRA or DoRA of PEFT."""
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS[name], **options)
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for each, parameter in wrapped.named_parameters():
            if "magnitude" in each:
                parameter.mul_(torch.exp(0.1 * torch.randn_like(parameter)))
            elif "lora_" in each:
                parameter.normal_(0, STD)
    return wrapped.eval()


def write_merged(place: Path, name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Write a base to `place/base`, and with a merged LoRA and a head to `place/merged`; return the latter model."""
    write_base(place, name)
    model = adapted(classifier(place, name), name, **options).merge_and_unload()
    model.to(dtype).save_pretrained(place / "merged")
    return model.float().eval()


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    """Return inputs of a model: texts of several lengths behind a mask, or images."""
    torch.manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    mask = (torch.arange(8) < torch.tensor([[8], [5], [3]])).long()
    return {"input_ids": torch.where(mask.bool(), torch.randint(3, 60, (3, 8)), 0), "attention_mask": mask}
