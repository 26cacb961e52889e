"""Models of published sizes with random weights, and LoRAs in PEFT's format.

python benchmarks/kit/real_models.py NAME FOLDER

The folder gets the Hugging Face folder `model`, the LoRAs `lora0`, `lora1`, … and `facts.json`. Texts have a tokenizer
of as many words as the vocabulary, `w0`, `w1`, ….
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

RANK, ALPHA, SEED, DEVIATION = 8, 16, 0, 0.2
"""Rank and scale of a LoRA, seed, and standard deviation of its weights; weights near 0 would hide faults."""

_END, _PAD = 2, 0
_EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class RealModel:
    """A model of a published size.

    Attributes:
        title: name and size, for tables.
        config: class of the configuration in transformers; empty for the installed all-MiniLM-L6-v2.
        fields: fields of the configuration.
        part: `decoder` for a language model, `encoder` for the encoder of an encoder-decoder, or `bare`.
        targets: modules that get a LoRA.
        inputs: `--input` of `capture`, where the folder does not tell them.
        adapters: adapters of each bundle; there is one LoRA more, for `add`.
    """

    title: str
    config: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    part: str = "bare"
    targets: tuple[str, ...] = ("query", "value")
    inputs: tuple[str, ...] = ()
    adapters: int = 1

    @property
    def generates(self) -> bool:
        """Return whether it is a language model."""
        return self.part == "decoder"


def _decoder(title: str, config: str, adapters: int = 1, **fields: Any) -> RealModel:
    fields = {"bos_token_id": 1, "eos_token_id": _END, "pad_token_id": _PAD, "tie_word_embeddings": True, **fields}
    return RealModel(title, config, fields, "decoder", ("q_proj", "v_proj"), adapters=adapters)


def _large(title: str, config: str, **fields: Any) -> RealModel:
    size = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return RealModel(title, config, {**size, **fields})


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

MODELS: dict[str, RealModel] = {
    "tiny": _decoder(
        "Llama, 2 layers of width 64, 512 words",
        "LlamaConfig",
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    ),
    "wide2": _decoder(
        "Llama, 2 layers of width 128, 151,936 words",
        "LlamaConfig",
        vocab_size=151936,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    ),
    "minilm": RealModel("all-MiniLM-L6-v2", ""),
    "whisper": RealModel(
        "Whisper-base, encoder",
        "WhisperConfig",
        {
            "d_model": 512,
            "encoder_layers": 6,
            "encoder_attention_heads": 8,
            "encoder_ffn_dim": 2048,
            "decoder_layers": 6,
            "decoder_attention_heads": 8,
            "decoder_ffn_dim": 2048,
            "num_mel_bins": 80,
            "max_source_positions": 1500,
            "vocab_size": 51865,
        },
        "encoder",
        ("q_proj", "v_proj"),
        ("input_features=float32[batch,80,3000]",),
    ),
    "llama56": _decoder(
        "Llama, 8 layers of width 512, 32,000 words",
        "LlamaConfig",
        adapters=8,
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    ),
    "smol": _decoder(
        "SmolLM2-135M",
        "LlamaConfig",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_theta=1e5,
        rms_norm_eps=1e-5,
    ),
    "vitl": replace(
        _large("ViT-large", "ViTConfig", image_size=224, patch_size=16),
        targets=("q_proj", "v_proj"),
        inputs=("pixel_values=float32[batch,3,224,224]",),
    ),
    "bertl": _large("BERT-large", "BertConfig", vocab_size=30522),
    "qwen": _decoder(
        "Qwen2.5-0.5B",
        "Qwen2Config",
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
    ),
    "xlmrl": _large(
        "XLM-RoBERTa-large",
        "XLMRobertaConfig",
        vocab_size=250002,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    ),
    "llama1b": _decoder(
        "Llama-3.2-1B",
        "LlamaConfig",
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rope_theta=5e5,
        rope_scaling=_LLAMA3_ROPE,
        rms_norm_eps=1e-5,
    ),
}
"""Models by short name, roughly by size. The configurations are those of the published models, with float32 weights."""


def write_model(name: str, folder: Path) -> None:
    """Write the folder of a model, its LoRAs, and `facts.json` with parameters and bytes of the weights."""
    import torch

    torch.manual_seed(SEED)
    model, target = MODELS[name], folder / "model"
    module = _save_random(model, target) if model.config else _copy_minilm(target)
    for number in range(model.adapters + 1):
        write_lora(folder / f"lora{number}", module, model.targets, number)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    weights = sum(parameter.nbytes for parameter in module.parameters())
    facts = {"parameters": parameters, "weights": weights, "adapters": model.adapters}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _save_random(model: RealModel, folder: Path) -> nn.Module:
    """Save a model with the initial weights of its architecture."""
    import transformers

    config = getattr(transformers, model.config)(**model.fields)
    auto = transformers.AutoModelForCausalLM if model.generates else transformers.AutoModel
    module: Any = auto.from_config(config, dtype="float32").eval()
    if model.part == "encoder":
        module = module.get_encoder()
    module.save_pretrained(folder, max_shard_size="100GB")
    if "vocab_size" in model.fields and model.part != "encoder":
        _save_tokenizer(folder, model.fields["vocab_size"], config.max_position_embeddings)
    return module  # type: ignore[no-any-return]


def _save_tokenizer(folder: Path, words: int, longest: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = Tokenizer(models.WordLevel({f"w{number}": number for number in range(words)}, unk_token="w3"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"bos_token": "w1", "eos_token": f"w{_END}", "pad_token": f"w{_PAD}", "unk_token": "w3"}
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, model_max_length=longest, **names).save_pretrained(folder)


def _copy_minilm(folder: Path) -> nn.Module:
    """Copy the installed all-MiniLM-L6-v2, and return it."""
    from transformers import AutoModel

    sys.path.insert(0, str(_EXAMPLES))
    import demo_data

    shutil.copytree(demo_data.base_folder(), folder)
    return AutoModel.from_pretrained(folder, dtype="float32", add_pooling_layer=False)  # type: ignore[no-any-return]


def write_lora(folder: Path, module: nn.Module, targets: Sequence[str], seed: int) -> None:
    """Write a LoRA with random weights as PEFT saves one."""
    import torch
    from safetensors.torch import save_file

    random, tensors = torch.Generator().manual_seed(seed), {}
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.rpartition(".")[2] in targets:
            prefix, width = f"base_model.model.{name}", layer.in_features
            down = torch.randn(RANK, width, generator=random) * DEVIATION / width**0.5
            tensors[f"{prefix}.lora_A.weight"] = down
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(layer.out_features, RANK, generator=random) * DEVIATION
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "target_modules": list(targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "task_type": "CAUSAL_LM" if hasattr(module, "lm_head") else "FEATURE_EXTRACTION",
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    write_model(sys.argv[1], Path(sys.argv[2]))
