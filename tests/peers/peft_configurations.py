"""Bases and configurations of PEFT's own tests (`tests/test_*_models.py`, version 0.21), as data.

`peft_configurations.json` has the configurations (`ALL_CONFIGS`), with the tasks in whose tests they are. The bases
have the architectures of these tests, which open published small models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = 64
"""Size of the vocabulary."""

_SPECIAL: Mapping[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# of the same odd size as in PEFT's tests, so that blocks of a size do not fit
_ENCODER: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "vocab_size": WORDS,
    "max_position_embeddings": 64,
    **_SPECIAL,
}
_DEBERTA: Mapping[str, Any] = {
    **_ENCODER,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
_GROUPED: Mapping[str, Any] = {**_ENCODER, "num_key_value_heads": 2}
_GPT: Mapping[str, Any] = {
    "vocab_size": WORDS,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 37,
    "n_positions": 64,
    **_SPECIAL,
}
_OPT: Mapping[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 37,
    "max_position_embeddings": 64,
    **_SPECIAL,
}
_T5: Mapping[str, Any] = {
    "vocab_size": WORDS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 37,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
_BART: Mapping[str, Any] = {
    "vocab_size": WORDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    **_SPECIAL,
}


@dataclass(frozen=True)
class PeftBase:
    """A base: its task, and the config of transformers with its options."""

    task: str
    config: str
    options: Mapping[str, Any]


PEFT_BASES: Mapping[str, PeftBase] = {
    "BertModel": PeftBase("FEATURE_EXTRACTION", "BertConfig", _ENCODER),
    "RobertaModel": PeftBase("FEATURE_EXTRACTION", "RobertaConfig", _ENCODER),
    "DebertaModel": PeftBase("FEATURE_EXTRACTION", "DebertaConfig", _DEBERTA),
    "DebertaV2Model": PeftBase("FEATURE_EXTRACTION", "DebertaV2Config", _DEBERTA),
    "BertForSequenceClassification": PeftBase("SEQ_CLS", "BertConfig", {**_ENCODER, "num_labels": 3}),
    "RobertaForSequenceClassification": PeftBase("SEQ_CLS", "RobertaConfig", {**_ENCODER, "num_labels": 3}),
    "LlamaForSequenceClassification": PeftBase("SEQ_CLS", "LlamaConfig", {**_GROUPED, "num_labels": 3}),
    "OPTForCausalLM": PeftBase("CAUSAL_LM", "OPTConfig", _OPT),
    "GPT2LMHeadModel": PeftBase("CAUSAL_LM", "GPT2Config", _GPT),
    "GPTJForCausalLM": PeftBase("CAUSAL_LM", "GPTJConfig", {**_GPT, "rotary_dim": 4}),
    "LlamaForCausalLM": PeftBase("CAUSAL_LM", "LlamaConfig", _GROUPED),
    "Qwen2ForCausalLM": PeftBase("CAUSAL_LM", "Qwen2Config", _GROUPED),
    "Gemma3ForCausalLM": PeftBase(
        "CAUSAL_LM", "Gemma3TextConfig", {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8}
    ),
    "T5ForConditionalGeneration": PeftBase("SEQ_2_SEQ_LM", "T5Config", _T5),
    "BartForConditionalGeneration": PeftBase("SEQ_2_SEQ_LM", "BartConfig", _BART),
}
"""Bases by their class in transformers."""


@dataclass(frozen=True)
class Configuration:
    """A configuration: its class, options, and tasks; `name` tells it from others of its class."""

    name: str
    config: str
    options: Mapping[str, Any]
    tasks: Sequence[str]


def configurations(task: str | None = None) -> list[Configuration]:
    """Return those of the file, or of a task."""
    rows = json.loads((Path(__file__).parent / "peft_configurations.json").read_text("utf-8"))
    named = []
    for row in rows:
        others = [other["options"] for other in rows if other["config"] == row["config"]]
        differing = {
            key: value for key, value in row["options"].items() if any(other.get(key) != value for other in others)
        }
        words = ", ".join([row["config"], *(f"{key}={value}" for key, value in differing.items())])
        named.append(Configuration(words, row["config"], row["options"], row["tasks"]))
    return [configuration for configuration in named if task in (None, *configuration.tasks)]
