"""Configurations of published models, by their names on the Hugging Face Hub.

The values are those of each model's `config.json`. Where a key is missing here, the published file has the default of
transformers. `small_config` changes only depth, width, vocabulary, and the sizes of images and audio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["encoder", "reranker", "decoder", "seq2seq", "image", "audio"]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        kind: determines the tasks.
        type: `model_type` of its configuration.
        divide: number by which all widths are divided, so that their ratios and the numbers of heads stay.
        lora: names of the linear layers that its LoRA changes.
        config: the published values.
        layers: layers of each stack: the fewest that show its pattern.
        pooling: pooling of its embeddings.
        normalise: whether its embeddings have length 1.
        head: options that an import needs for the classification head of its class.
        without: tasks that its class has no place for.
    """

    kind: Kind
    type: str
    divide: int
    lora: tuple[str, ...]
    config: Values
    layers: int = 2
    pooling: str = "mean"
    normalise: bool = True
    head: Values = field(default_factory=dict)
    without: tuple[str, ...] = ()


BERT = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "pad_token_id": 0} | {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
}
ROBERTA = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "type_vocab_size": 1, "vocab_size": 50265} | {
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "max_position_embeddings": 514,
}
XLM_ROBERTA = {**ROBERTA, "vocab_size": 250002}
DEBERTA_V3 = {"hidden_act": "gelu", "layer_norm_eps": 1e-7, "type_vocab_size": 0, "vocab_size": 128100} | {
    "pad_token_id": 0,
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "pooler_dropout": 0,
    "pooler_hidden_act": "gelu",
    "pooler_hidden_size": 768,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 256,
    "relative_attention": True,
    "share_att_key": True,
}
MODERNBERT = {"attention_bias": False, "bos_token_id": 50281, "classifier_activation": "gelu"} | {
    "classifier_bias": False,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "norm_bias": False,
    "norm_eps": 1e-5,
    "pad_token_id": 50283,
    "sep_token_id": 50282,
    "vocab_size": 50368,
}


def sizes(width: int, layers: int, heads: int, inner: int) -> Values:
    """Widths, layers and heads under the names that most configurations have."""
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
    }


SMALL_384 = sizes(384, 12, 12, 1536)
BASE = sizes(768, 12, 12, 3072)
LARGE = sizes(1024, 24, 16, 4096)
QV = ("query", "value")


def _bert(shape: Values, divide: int = 16, *, pooling: str = "mean", **values: Any) -> Published:
    return Published("encoder", "bert", divide, QV, {**BERT, **shape, **values}, pooling=pooling)


def _roberta(kind: str, shape: Values, values: Values, *, pooling: str = "mean") -> Published:
    return Published("encoder", kind, 16, QV, {**values, **shape}, pooling=pooling)


def _modernbert(shape: Values) -> Published:
    dense = {"pooling": "mean", "activation": "gelu"}
    return Published("encoder", "modernbert", 16, ("Wqkv", "Wo"), {**MODERNBERT, **shape}, layers=4, head=dense)


def _deberta_v3(layers: int, *lora: str) -> Published:
    values = {**DEBERTA_V3, **BASE, "num_hidden_layers": layers}
    head = {"pooling": "first", "activation": "gelu"}
    return Published("encoder", "deberta-v2", 16, lora, values, head=head)


ENCODERS: Mapping[str, Published] = {
    "google-bert/bert-base-uncased": _bert(BASE),
    "google-bert/bert-large-uncased": _bert(LARGE),
    "google-bert/bert-base-multilingual-cased": _bert(BASE, vocab_size=119547),
    "distilbert/distilbert-base-uncased": Published(
        "encoder",
        "distilbert",
        16,
        ("q_lin", "v_lin"),
        {"activation": "gelu", "dim": 768, "hidden_dim": 3072, "n_heads": 12, "n_layers": 6}
        | {"max_position_embeddings": 512, "pad_token_id": 0, "sinusoidal_pos_embds": False, "vocab_size": 30522},
    ),
    "FacebookAI/roberta-base": _roberta("roberta", BASE, ROBERTA),
    "FacebookAI/xlm-roberta-base": _roberta("xlm-roberta", BASE, XLM_ROBERTA),
    "FacebookAI/xlm-roberta-large": _roberta("xlm-roberta", LARGE, XLM_ROBERTA),
    "microsoft/deberta-v3-small": _deberta_v3(6, "query_proj", "value_proj"),
    "microsoft/deberta-v3-base": _deberta_v3(12, "value_proj", "dense"),
    "google/electra-small-discriminator": Published(
        "encoder", "electra", 16, QV, {**BERT, **sizes(256, 12, 4, 1024), "embedding_size": 128}
    ),
    "albert/albert-base-v2": Published(
        "encoder",
        "albert",
        16,
        QV,
        {**BERT, **BASE, "embedding_size": 128, "hidden_act": "gelu_new", "vocab_size": 30000}
        | {"bos_token_id": 2, "eos_token_id": 3, "inner_group_num": 1, "num_hidden_groups": 1},
    ),
    "microsoft/mpnet-base": Published(
        "encoder",
        "mpnet",
        16,
        ("q", "v"),
        {**BASE, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 514}
        | {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
        | {"relative_attention_num_buckets": 32, "vocab_size": 30527},
    ),
    "answerdotai/ModernBERT-base": _modernbert(sizes(768, 22, 12, 1152)),
    "answerdotai/ModernBERT-large": _modernbert(sizes(1024, 28, 16, 2624)),
}

EMBEDDERS: Mapping[str, Published] = {
    "sentence-transformers/all-MiniLM-L6-v2": _bert(sizes(384, 6, 12, 1536), 8),
    "BAAI/bge-small-en-v1.5": _bert(SMALL_384, 8, pooling="first"),
    "BAAI/bge-base-en-v1.5": _bert(BASE, pooling="first"),
    "BAAI/bge-large-en-v1.5": _bert(LARGE, pooling="first"),
    "BAAI/bge-m3": _roberta("xlm-roberta", LARGE, {**XLM_ROBERTA, "max_position_embeddings": 8194}, pooling="first"),
    "intfloat/e5-small-v2": _bert(SMALL_384, 8),
    "intfloat/multilingual-e5-small": _bert(SMALL_384, 8, vocab_size=250037),
    "intfloat/multilingual-e5-large": _roberta("xlm-roberta", LARGE, XLM_ROBERTA),
    "thenlper/gte-base": _bert(BASE),
}

RERANKERS: Mapping[str, Published] = {
    "BAAI/bge-reranker-v2-m3": Published(
        "reranker", "xlm-roberta", 16, QV, {**XLM_ROBERTA, **LARGE, "max_position_embeddings": 8194}
    ),
    "BAAI/bge-reranker-base": Published("reranker", "xlm-roberta", 16, QV, {**XLM_ROBERTA, **BASE}),
    "cross-encoder/ms-marco-MiniLM-L6-v2": Published("reranker", "bert", 8, QV, {**BERT, **sizes(384, 6, 12, 1536)}),
}

LLAMA_LORA = ("q_proj", "v_proj", "down_proj")
QWEN3_06B = {**sizes(1024, 28, 16, 3072), "head_dim": 128, "num_key_value_heads": 8} | {
    "attention_bias": False,
    "bos_token_id": 151643,
    "hidden_act": "silu",
    "max_window_layers": 28,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}
LLAMA3 = {"attention_bias": False, "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu"} | {
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}


def _llama3(shape: Values, divide: int, factor: float, *, tied: bool, **values: Any) -> Published:
    scaling = {"factor": factor, "high_freq_factor": 4.0, "low_freq_factor": 1.0} | {
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    config = {**LLAMA3, **shape, **values, "rope_scaling": scaling, "tie_word_embeddings": tied}
    return Published("decoder", "llama", divide, LLAMA_LORA, config)


def _smollm2(shape: Values, kv_heads: int) -> Published:
    values = {"attention_bias": False, "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu"} | {
        "max_position_embeddings": 8192,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    }
    return Published("decoder", "llama", 16, LLAMA_LORA, {**shape, **values})


def _qwen2(shape: Values, divide: int, kv_heads: int, positions: int, *, tied: bool, **values: Any) -> Published:
    config = {
        **shape,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "max_position_embeddings": positions,
        "max_window_layers": shape["num_hidden_layers"],
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": positions,
        "tie_word_embeddings": tied,
        "use_sliding_window": False,
        "vocab_size": 151936,
        **values,
    }
    return Published("decoder", "qwen2", divide, LLAMA_LORA, config)


def _qwen3(positions: int, vocabulary: int, end: int) -> Published:
    config = {**QWEN3_06B, "max_position_embeddings": positions, "vocab_size": vocabulary, "eos_token_id": end}
    return Published("decoder", "qwen3", 32, LLAMA_LORA, config, pooling="last")


def _mistral(**values: Any) -> Published:
    config = {**sizes(4096, 32, 32, 14336), "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu"} | {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **values,
    }
    return Published("decoder", "mistral", 32, LLAMA_LORA, config)


def _opt(width: int, layers: int, heads: int, embedding: int, *, norm_first: bool) -> Published:
    config = {
        "activation_function": "relu",
        "bos_token_id": 2,
        "do_layer_norm_before": norm_first,
        "eos_token_id": 2,
        "ffn_dim": 4 * width,
        "hidden_size": width,
        "max_position_embeddings": 2048,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "vocab_size": 50272,
        "word_embed_proj_dim": embedding,
    }
    return Published("decoder", "opt", 16, ("q_proj", "v_proj"), config)


GEMMA2_2B = {**sizes(2304, 26, 8, 9216), "attention_bias": False, "attn_logit_softcapping": 50.0} | {
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
GEMMA3_1B = {**sizes(1152, 26, 4, 6912), "attention_bias": False, "attn_logit_softcapping": None} | {
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32768,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10000,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
PHI2 = {**sizes(2560, 32, 32, 10240), "bos_token_id": 50256, "eos_token_id": 50256, "hidden_act": "gelu_new"} | {
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "partial_rotary_factor": 0.4,
    "qk_layernorm": False,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 51200,
}
PHI3_MINI = {**sizes(3072, 32, 32, 8192), "bos_token_id": 1, "eos_token_id": 32000, "hidden_act": "silu"} | {
    "max_position_embeddings": 4096,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
OLMO2_1B = {**sizes(2048, 16, 16, 8192), "attention_bias": False, "eos_token_id": 100257, "hidden_act": "silu"} | {
    "max_position_embeddings": 4096,
    "num_key_value_heads": 16,
    "pad_token_id": 100277,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "vocab_size": 100352,
}
PYTHIA = {**BASE, "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu", "layer_norm_eps": 1e-5} | {
    "max_position_embeddings": 2048,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
STABLELM2 = {**sizes(2048, 24, 32, 5632), "bos_token_id": 100257, "eos_token_id": 100257, "hidden_act": "silu"} | {
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "use_qkv_bias": True,
    "vocab_size": 100352,
}
GRANITE3 = {**sizes(2048, 40, 32, 8192), "attention_bias": False, "attention_multiplier": 0.015625} | {
    "bos_token_id": 0,
    "embedding_multiplier": 12.0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "logits_scaling": 8.0,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}

DECODERS: Mapping[str, Published] = {
    "Qwen/Qwen3-Embedding-0.6B": _qwen3(32768, 151669, 151643),
    "Qwen/Qwen3-Reranker-0.6B": _qwen3(40960, 151669, 151645),
    "Qwen/Qwen3-0.6B": _qwen3(40960, 151936, 151645),
    "HuggingFaceTB/SmolLM2-135M": _smollm2(sizes(576, 30, 9, 1536), 3),
    "HuggingFaceTB/SmolLM2-360M": _smollm2(sizes(960, 32, 15, 2560), 5),
    "Qwen/Qwen2.5-0.5B": _qwen2(sizes(896, 24, 14, 4864), 16, 2, 32768, tied=True),
    "Qwen/Qwen2.5-1.5B": _qwen2(sizes(1536, 28, 12, 8960), 32, 2, 131072, tied=True),
    "Qwen/Qwen2.5-7B": _qwen2(sizes(3584, 28, 28, 18944), 32, 4, 131072, tied=False, vocab_size=152064),
    "meta-llama/Llama-3.2-1B": _llama3(
        sizes(2048, 16, 32, 8192), 16, 32.0, tied=True, head_dim=64, num_key_value_heads=8
    ),
    "meta-llama/Llama-3.1-8B": _llama3(sizes(4096, 32, 32, 14336), 32, 8.0, tied=False, num_key_value_heads=8),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": Published(
        "decoder",
        "llama",
        16,
        LLAMA_LORA,
        {**sizes(2048, 22, 32, 5632), "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2}
        | {"hidden_act": "silu", "max_position_embeddings": 2048, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}
        | {"rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 32000},
    ),
    "mistralai/Mistral-7B-v0.1": _mistral(rope_theta=10000.0, sliding_window=4096, vocab_size=32000),
    "mistralai/Mistral-7B-v0.3": _mistral(rope_theta=1000000.0, sliding_window=None, vocab_size=32768),
    "google/gemma-2-2b": Published("decoder", "gemma2", 32, LLAMA_LORA, GEMMA2_2B),
    "google/gemma-3-1b-pt": Published("decoder", "gemma3_text", 32, LLAMA_LORA, GEMMA3_1B, layers=6),
    "microsoft/phi-2": Published("decoder", "phi", 8, ("q_proj", "v_proj", "fc2"), PHI2),
    "microsoft/Phi-3-mini-4k-instruct": Published("decoder", "phi3", 16, ("qkv_proj", "down_proj"), PHI3_MINI),
    "allenai/OLMo-2-0425-1B": Published("decoder", "olmo2", 32, LLAMA_LORA, OLMO2_1B),
    "openai-community/gpt2": Published(
        "decoder",
        "gpt2",
        16,
        ("c_attn", "c_fc"),
        {"activation_function": "gelu_new", "bos_token_id": 50256, "eos_token_id": 50256}
        | {"layer_norm_epsilon": 1e-5, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024}
        | {"vocab_size": 50257},
    ),
    "facebook/opt-125m": _opt(768, 12, 12, 768, norm_first=True),
    "facebook/opt-350m": _opt(1024, 24, 16, 512, norm_first=False),
    "EleutherAI/pythia-160m": Published("decoder", "gpt_neox", 8, ("query_key_value", "dense_4h_to_h"), PYTHIA),
    "bigscience/bloom-560m": Published(
        "decoder",
        "bloom",
        16,
        ("query_key_value", "dense_4h_to_h"),
        {"apply_residual_connection_post_layernorm": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
        | {"hidden_size": 1024, "layer_norm_epsilon": 1e-5, "n_head": 16, "n_layer": 24, "vocab_size": 250880},
    ),
    "tiiuae/falcon-7b": Published(
        "decoder",
        "falcon",
        16,
        ("query_key_value", "dense_4h_to_h"),
        {"alibi": False, "bias": False, "bos_token_id": 11, "eos_token_id": 11, "hidden_size": 4544}
        | {"layer_norm_epsilon": 1e-5, "multi_query": True, "new_decoder_architecture": False}
        | {"num_attention_heads": 71, "num_hidden_layers": 32, "parallel_attn": True, "vocab_size": 65024},
    ),
    "stabilityai/stablelm-2-1_6b": Published("decoder", "stablelm", 8, LLAMA_LORA, STABLELM2),
    "ibm-granite/granite-3.0-2b-base": Published("decoder", "granite", 16, LLAMA_LORA, GRANITE3),
}


def _t5(width: int, layers: int, heads: int, **values: Any) -> Published:
    config = {"d_ff": 2048, "d_kv": 64, "d_model": width, "decoder_start_token_id": 0, "eos_token_id": 1} | {
        "layer_norm_epsilon": 1e-6,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "num_layers": layers,
        "pad_token_id": 0,
        "relative_attention_num_buckets": 32,
        "vocab_size": 32128,
        **values,
    }
    return Published("seq2seq", "t5", 16, ("q", "v", "wo"), config)


def _bart(kind: str, width: int, layers: int, heads: int, inner: int, **values: Any) -> Published:
    config = {"d_model": width, "is_encoder_decoder": True} | {
        f"{half}_{name}": size
        for half in ("encoder", "decoder")
        for name, size in (("attention_heads", heads), ("ffn_dim", inner), ("layers", layers))
    }
    return Published("seq2seq", kind, 16, ("q_proj", "v_proj", "fc2"), {**config, **values})


BART = {"activation_function": "gelu", "bos_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 2} | {
    "forced_eos_token_id": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 1,
    "scale_embedding": False,
}
SEQ2SEQ: Mapping[str, Published] = {
    "google-t5/t5-small": _t5(512, 6, 8, feed_forward_proj="relu"),
    "google/flan-t5-base": _t5(768, 12, 12, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "facebook/bart-base": _bart("bart", 768, 6, 12, 3072, **BART, vocab_size=50265),
    "facebook/bart-large-cnn": _bart("bart", 1024, 12, 16, 4096, **BART, vocab_size=50264, forced_bos_token_id=0),
    "Helsinki-NLP/opus-mt-en-de": _bart(
        "marian",
        512,
        6,
        8,
        2048,
        activation_function="swish",
        bos_token_id=0,
        decoder_start_token_id=58100,
        decoder_vocab_size=58101,
        eos_token_id=0,
        forced_eos_token_id=0,
        max_position_embeddings=512,
        pad_token_id=58100,
        scale_embedding=True,
        static_position_embeddings=True,
        vocab_size=58101,
    ),
}

PATCHES = {"hidden_act": "gelu", "image_size": 224, "layer_norm_eps": 1e-12, "patch_size": 16, "qkv_bias": True}


def _image(kind: str, shape: Values, *, divide: int = 16, **values: Any) -> Published:
    return Published("image", kind, divide, ("q_proj", "v_proj"), {**shape, **values})


def _dinov2(width: int, heads: int) -> Published:
    shape = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": 12}
    values = {**PATCHES, "image_size": 518, "layer_norm_eps": 1e-6, "patch_size": 14}
    return _image("dinov2", shape, **values, layerscale_value=1.0, mlp_ratio=4, use_swiglu_ffn=False)


VISION: Mapping[str, Published] = {
    "google/vit-base-patch16-224": _image("vit", BASE, **PATCHES),
    "google/vit-large-patch16-224": _image("vit", LARGE, **PATCHES),
    "facebook/deit-small-patch16-224": _image("vit", sizes(384, 12, 6, 1536), **PATCHES),
    "facebook/deit-base-distilled-patch16-224": _image("deit", BASE, **PATCHES),
    "facebook/dinov2-small": _dinov2(384, 6),
    "facebook/dinov2-base": _dinov2(768, 12),
    "microsoft/swin-tiny-patch4-window7-224": _image(
        "swin",
        {"depths": [2, 2, 6, 2], "embed_dim": 96, "num_heads": [3, 6, 12, 24]},
        divide=8,
        **{**PATCHES, "layer_norm_eps": 1e-5, "patch_size": 4},
        mlp_ratio=4.0,
        use_absolute_embeddings=False,
        window_size=7,
    ),
    "microsoft/beit-base-patch16-224": _image(
        "beit",
        BASE,
        **{name: value for name, value in PATCHES.items() if name != "qkv_bias"},
        layer_scale_init_value=0.1,
        use_absolute_position_embeddings=False,
        use_mask_token=False,
        use_mean_pooling=True,
        use_relative_position_bias=True,
        use_shared_relative_position_bias=False,
    ),
    "openai/clip-vit-base-patch32 (vision)": _image(
        "clip_vision_model",
        BASE,
        hidden_act="quick_gelu",
        image_size=224,
        layer_norm_eps=1e-5,
        patch_size=32,
    ),
    "google/siglip-base-patch16-224 (vision)": _image(
        "siglip_vision_model",
        BASE,
        hidden_act="gelu_pytorch_tanh",
        image_size=224,
        layer_norm_eps=1e-6,
        patch_size=16,
    ),
}
CLIP_TEXT: Mapping[str, Published] = {
    "openai/clip-vit-base-patch32 (text)": Published(
        "encoder",
        "clip_text_model",
        16,
        ("q_proj", "v_proj"),
        {**sizes(512, 12, 8, 2048), "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "quick_gelu"}
        | {"layer_norm_eps": 1e-5, "max_position_embeddings": 77, "pad_token_id": 1, "vocab_size": 49408},
        pooling="last",
    ),
}

WAV2VEC2 = {
    **BASE,
    "apply_spec_augment": False,
    "conv_bias": False,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "do_stable_layer_norm": False,
    "feat_extract_activation": "gelu",
    "feat_extract_norm": "group",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "num_conv_pos_embedding_groups": 16,
    "num_conv_pos_embeddings": 128,
    "vocab_size": 32,
}
"""`apply_spec_augment` acts in training only; it is off because it draws random numbers."""

WHISPER_BASE = {
    "activation_function": "gelu",
    "bos_token_id": 50257,
    "d_model": 512,
    "decoder_start_token_id": 50258,
    "eos_token_id": 50257,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "num_mel_bins": 80,
    "pad_token_id": 50257,
    "vocab_size": 51865,
} | {f"{half}_attention_heads": 8 for half in ("encoder", "decoder")}
WHISPER_BASE |= {f"{half}_ffn_dim": 2048 for half in ("encoder", "decoder")}
WHISPER_BASE |= {f"{half}_layers": 6 for half in ("encoder", "decoder")}

SPEECH: Mapping[str, Published] = {
    "facebook/wav2vec2-base": Published("audio", "wav2vec2", 16, ("q_proj", "v_proj"), WAV2VEC2),
    "facebook/hubert-base-ls960": Published("audio", "hubert", 16, ("q_proj", "v_proj"), WAV2VEC2),
    "microsoft/wavlm-base": Published(
        "audio", "wavlm", 16, ("output_dense",), {**WAV2VEC2, "max_bucket_distance": 800, "num_buckets": 320}
    ),
    "facebook/w2v-bert-2.0": Published(
        "audio",
        "wav2vec2-bert",
        16,
        ("linear_q", "linear_v"),
        {**LARGE, "apply_spec_augment": False, "conv_depthwise_kernel_size": 31, "feature_projection_input_dim": 160}
        | {"hidden_act": "swish", "layer_norm_eps": 1e-5, "left_max_position_embeddings": 64}
        | {"position_embeddings_type": "relative_key", "right_max_position_embeddings": 8},
    ),
    "openai/whisper-base": Published(
        "audio", "whisper", 16, ("q_proj", "v_proj"), WHISPER_BASE, without=("single_label",)
    ),
}

GROUPS: Mapping[str, Mapping[str, Published]] = {
    "Encoders of text": {**ENCODERS, **CLIP_TEXT},
    "Embedders": EMBEDDERS,
    "Rerankers": RERANKERS,
    "Decoders": DECODERS,
    "Encoders with decoders": SEQ2SEQ,
    "Images": VISION,
    "Speech": SPEECH,
}
MODELS: Mapping[str, Published] = {name: model for models in GROUPS.values() for name, model in models.items()}
