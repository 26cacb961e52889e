"""Small models with published configurations: fewer layers, narrower, short vocabularies, small images and audio."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
import transformers
from configurations import Published
from torch import nn

DEPTHS = frozenset(
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
)
WIDTHS = frozenset(
    ("hidden_size", "embedding_size", "intermediate_size", "pooler_hidden_size", "d_model", "d_kv", "d_ff", "dim")
) | {"hidden_dim", "n_embd", "ffn_dim", "word_embed_proj_dim", "encoder_ffn_dim", "decoder_ffn_dim", "head_dim"}
WIDTHS |= {"embed_dim", "conv_dim", "query_pre_attn_scalar"}
"""Keys that are numbers of features; the scale of queries is one, too."""

STAGES = frozenset(("depths", "num_heads"))
"""Keys with a number for each stage of Swin."""

PATCHES, SOURCES = 4, 60
"""Patches on a side of an image, and positions of Whisper's encoder: the time of a build is quadratic in them."""

VOCABULARIES = frozenset(("vocab_size", "decoder_vocab_size"))
WORDS, BLOCK = 96, 32
"""The small vocabulary, and the period in which a vocabulary's remainder is kept: blocks of weights have 32 rows."""

STD, BIAS_STD = 0.2, 0.1


def small_config(model: Published) -> transformers.PretrainedConfig:
    """Return the configuration of a small model."""
    values = deepcopy(dict(model.config))  # transformers adds keys to nested dictionaries
    for name, value in model.config.items():
        if name in DEPTHS:
            values[name] = min(value, model.layers)
        elif name in STAGES and isinstance(value, list):
            values[name] = [min(each, model.layers) if name == "depths" else each for each in value[: model.layers]]
        elif name in WIDTHS:
            values[name] = _divided(name, value, model.divide)
    if "image_size" in values:
        values["image_size"] = values["patch_size"] * (2 * values["window_size"] if "depths" in values else PATCHES)
    if "max_source_positions" in values:
        values["max_source_positions"] = SOURCES
    values |= _small_vocabulary(model.config)
    return transformers.AutoConfig.for_model(model.type, **values)


def _divided(name: str, value: int | list[int], by: int) -> int | list[int]:
    if isinstance(value, list):
        return [_exactly(name, each, by) for each in value]
    return _exactly(name, value, by)


def _exactly(name: str, value: int, by: int) -> int:
    if value % by:
        raise ValueError(f"{name} {value} is not a multiple of {by}")
    return value // by


def _small_vocabulary(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the vocabulary: special tokens beyond the last word become the last words, in their order."""
    if "vocab_size" not in config or config["vocab_size"] <= WORDS:
        return {}
    words = WORDS + config["vocab_size"] % BLOCK
    specials = {name: value for name, value in config.items() if name.endswith("token_id") and value is not None}
    beyond = sorted({value for value in specials.values() if value >= words})
    moved = {value: words - len(beyond) + place for place, value in enumerate(beyond)}
    return dict.fromkeys(VOCABULARIES & config.keys(), words) | {
        name: moved.get(value, value) for name, value in specials.items()
    }


def small_model(model: Published) -> transformers.PreTrainedModel:
    """Return the model with random weights, in the class that its publisher saved (encoders without their heads)."""
    config = small_config(model)
    torch.manual_seed(0)
    if model.kind == "reranker":
        config.num_labels = 1
        module = transformers.AutoModelForSequenceClassification.from_config(config)
    elif model.kind == "decoder":
        module = transformers.AutoModelForCausalLM.from_config(config)
    elif model.kind == "seq2seq":
        module = transformers.AutoModelForSeq2SeqLM.from_config(config)
    elif model.type == "whisper":
        module = transformers.AutoModelForAudioClassification.from_config(config)
    else:
        module = transformers.AutoModel.from_config(config)
    randomize(module)
    return module.eval()


def randomize(module: nn.Module) -> None:
    """Draw matrices with a standard deviation of 0.2; move biases and weights of norms by 0.1.

    Adapters and norms that stay near their initial values hide mistakes. Fixed tables, as of sinusoids, are kept.
    """
    with torch.no_grad():
        for parameter in _trained(module):
            noise = torch.randn(parameter.shape)
            if parameter.dim() > 1:
                parameter.copy_(STD * noise)
            else:
                parameter.add_(BIAS_STD * noise)


def _trained(module: nn.Module) -> Iterable[nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.requires_grad)


def quiet() -> None:
    """Silence transformers and torch's exporter: their warnings are not about this package."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
