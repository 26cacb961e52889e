"""Bases and methods of AdapterHub's own tests (`tests/test_methods`, version 1.3), as data.

Sizes are those of the tests, with smaller vocabularies, images and sounds. The library, which makes the adapters, and
this package, which imports them, run in two processes, as they need other versions of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

WORDS, SIDE, MELS, FRAMES = 64, 32, 8, 24
"""Size of the vocabulary, of a side of an image in pixels, and of a sound."""

SPECIAL: Mapping[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ENCODER: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 37,
}
_FIVE: Mapping[str, Any] = {**_ENCODER, "num_hidden_layers": 5}
_TEXT: Mapping[str, Any] = {**_ENCODER, "vocab_size": WORDS, **SPECIAL}
_DEBERTA: Mapping[str, Any] = {
    **_FIVE,
    "vocab_size": WORDS,
    "pad_token_id": 0,
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
}
_BART: Mapping[str, Any] = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 4,
    "decoder_ffn_dim": 4,
    "vocab_size": WORDS,
    "decoder_start_token_id": 2,
    **SPECIAL,
}
_T5: Mapping[str, Any] = {
    "d_model": 16,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "d_ff": 4,
    "d_kv": 4,
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "vocab_size": WORDS,
}
_CLIP: Mapping[str, Any] = {**_ENCODER, "projection_dim": 32}

Kind = Literal["text", "translation", "image", "speech"]


@dataclass(frozen=True)
class Hub:
    """A base: transformers' config and its options, the kind of its inputs, and its class.

    `AutoAdapterModel` opens a base without a class; the others get adapters by `adapters.init`.
    """

    config: str
    options: Mapping[str, Any]
    kind: Kind = "text"
    model: str = ""


BASES: Mapping[str, Hub] = {
    "albert": Hub(
        "AlbertConfig",
        {**_FIVE, "hidden_size": 64, "embedding_size": 16, "num_hidden_groups": 2, "vocab_size": WORDS, **SPECIAL},
    ),
    "bart": Hub("BartConfig", {**_BART, "d_model": 16}, "translation"),
    "beit": Hub("BeitConfig", {**_ENCODER, "image_size": SIDE, "patch_size": 8}, "image"),
    "bert": Hub("BertConfig", _TEXT),
    "bert_generation": Hub("BertGenerationConfig", _TEXT),
    "clip text": Hub("CLIPTextConfig", {**_CLIP, "vocab_size": WORDS, **SPECIAL}, model="CLIPTextModel"),
    "clip vision": Hub("CLIPVisionConfig", {**_CLIP, "image_size": SIDE, "patch_size": 8}, "image", "CLIPVisionModel"),
    "deberta": Hub("DebertaConfig", _DEBERTA),
    "debertaV2": Hub("DebertaV2Config", _DEBERTA),
    "distilbert": Hub(
        "DistilBertConfig", {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 37, "vocab_size": WORDS}
    ),
    "electra": Hub("ElectraConfig", {**_FIVE, "vocab_size": WORDS, "pad_token_id": 0}),
    "gpt2": Hub("GPT2Config", {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": WORDS, **SPECIAL}),
    "llama": Hub("LlamaConfig", {**_FIVE, "hidden_act": "gelu", "vocab_size": WORDS, **SPECIAL}),
    "mbart": Hub("MBartConfig", {**_BART, "d_model": 16}, "translation"),
    "mistral": Hub(
        "MistralConfig", {**_FIVE, "num_attention_heads": 8, "hidden_act": "gelu", "vocab_size": WORDS, **SPECIAL}
    ),
    "mt5": Hub("MT5Config", _T5, "translation"),
    "plbart": Hub("PLBartConfig", {**_BART, "d_model": 32, "scale_embedding": False}, "translation"),
    "roberta": Hub("RobertaConfig", _TEXT),
    "t5": Hub("T5Config", _T5, "translation"),
    "vit": Hub("ViTConfig", {**_ENCODER, "image_size": SIDE, "patch_size": 8}, "image"),
    "whisper": Hub(
        "WhisperConfig",
        {**_BART, "d_model": 32, "num_mel_bins": MELS, "max_source_positions": FRAMES // 2, "max_target_positions": 32},
        "speech",
    ),
    "xlm_roberta": Hub("XLMRobertaConfig", _TEXT),
    "xmod": Hub("XmodConfig", {**_TEXT, "default_language": "en_XX"}),
}


@dataclass(frozen=True)
class Method:
    """A method: the library's config, its options, and the members of a union."""

    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[Method, ...] = ()


_ALL: Mapping[str, Any] = {"intermediate_lora": True, "output_lora": True}
_BY_LAYER = {"1": 1, "default": 2}

METHODS: Mapping[str, Method] = {
    "SeqBnConfig": Method("SeqBnConfig"),
    "SeqBnConfig, by layer": Method("SeqBnConfig", {"reduction_factor": _BY_LAYER}),
    "SeqBnInvConfig": Method("SeqBnInvConfig"),
    "DoubleSeqBnConfig": Method("DoubleSeqBnConfig"),
    "DoubleSeqBnConfig, by layer": Method("DoubleSeqBnConfig", {"reduction_factor": _BY_LAYER}),
    "DoubleSeqBnInvConfig": Method("DoubleSeqBnInvConfig"),
    "CompacterPlusPlusConfig": Method("CompacterPlusPlusConfig", {"phm_dim": 2, "reduction_factor": 8}),
    "CompacterPlusPlusConfig, shared": Method(
        "CompacterPlusPlusConfig", {"phm_dim": 4, "shared_W_phm": True, "reduction_factor": 4}
    ),
    "LoRAConfig": Method("LoRAConfig"),
    "LoRAConfig, all layers": Method("LoRAConfig", _ALL),
    "LoRAConfig, DoRA": Method("LoRAConfig", {"use_dora": True}),
    "DoRAConfig": Method("DoRAConfig"),
    "DvoRAConfig": Method("DvoRAConfig"),
    "VeraConfig": Method("VeraConfig"),
    "VeraConfig, DoRA": Method("VeraConfig", {"use_dora": True}),
    "VeraConfig, b and d": Method("VeraConfig", {"vera_b": 0.5, "vera_d": 0.5}),
    "IA3Config": Method("IA3Config"),
    "IA3Config, all layers": Method("IA3Config", _ALL),
    "MTLLoRAConfig": Method("MTLLoRAConfig"),
    "MTLLoRAConfig, three": Method("MTLLoRAConfig", {"n_up_projection": 3}),
    "LoReftConfig": Method("LoReftConfig"),
    "NoReftConfig": Method("NoReftConfig", {"prefix_positions": 2, "suffix_positions": 2}),
    "DiReftConfig": Method("DiReftConfig", {"tied_weights": True}),
    "PrefixTuningConfig": Method("PrefixTuningConfig"),
    "PrefixTuningConfig, flat": Method("PrefixTuningConfig", {"flat": True}),
    "PromptTuningConfig": Method("PromptTuningConfig", {"prompt_length": 10}),
    "MAMConfig": Method("MAMConfig"),
    "UniPELTConfig": Method("UniPELTConfig"),
    "ConfigUnion of PrefixTuning and ParBn": Method(
        "ConfigUnion", members=(Method("PrefixTuningConfig"), Method("ParBnConfig"))
    ),
    "ConfigUnion of Compacter and LoRA": Method(
        "ConfigUnion", members=(Method("CompacterConfig", {"reduction_factor": 8}), Method("LoRAConfig"))
    ),
    "ConfigUnion of SeqBn and LoRA": Method(
        "ConfigUnion", members=(Method("SeqBnConfig", {"phm_dim": 1}), Method("LoRAConfig"))
    ),
}
