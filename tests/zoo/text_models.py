"""Models of tokens: encoders, decoders, and encoders with decoders."""

from __future__ import annotations

from functools import partial

import partial_bases
import small_bases
import torch
import transformers as hf
from recipes import (
    EXPERTS,
    FIXED,
    GROUPED,
    LATENT,
    SIZES,
    STACK_SIZES,
    STATES,
    T5,
    WORDS,
    Model,
    Tensors,
    decoder,
    of_transformers,
    text,
    two_stacks,
    two_texts,
    values,
    words,
)
from torch import nn


def _series() -> Tensors:
    return {
        "past_values": torch.randn(2, 24),
        "past_time_features": torch.randn(2, 24, 1),
        "past_observed_mask": torch.ones(2, 24),
        "future_values": torch.randn(2, 4),
        "future_time_features": torch.randn(2, 4, 1),
    }


def _moves() -> Tensors:
    """Six moves of an agent."""
    return {
        **{name: torch.randn(2, 6, width) for name, width in MOVE_WIDTHS.items()},
        "timesteps": torch.randint(0, 20, (2, 6)),
        "attention_mask": torch.ones(2, 6, dtype=torch.int64),
    }


def _bert_to_bert() -> nn.Module:
    reader = hf.BertConfig(**SIZES, **WORDS)
    writer = hf.BertConfig(**SIZES, **WORDS, is_decoder=True, add_cross_attention=True, use_cache=False)
    config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(reader, writer)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return hf.EncoderDecoderModel(config)


MOVE_WIDTHS = {"states": 5, "actions": 3, "rewards": 1, "returns_to_go": 1}
SERIES = {"prediction_length": 4, "context_length": 17, "lags_sequence": [1, 7], "num_time_features": 1} | STACK_SIZES
SMALL_WINDOW = {"global_attn_every_n_layers": 2, "local_attention": 4}
LAST = {"cls_token_id": 1, "sep_token_id": 2}

TEXTS = {
    "BERT": text(4, "bert"),
    "RoBERTa": text(4, "roberta"),
    "DistilBERT": text(4, "distilbert", dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "ALBERT": text(4, "albert", embedding_size=8),
    "ELECTRA": text(4, "electra", embedding_size=8),
    "XLM-RoBERTa-XL": text(4, "xlm-roberta-xl"),
    "RoBERTa-PreLayerNorm": text(4, "roberta-prelayernorm"),
    "X-MOD": text(6, "xmod", languages=["en_XX"], default_language="en_XX"),
    "DeBERTa": text(4, "deberta", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "DeBERTa-v2": text(4, "deberta-v2", **small_bases.DISENTANGLED),
    "MPNet": text(4, "mpnet"),
    "ModernBERT": text(4, "modernbert", **LAST),
    "ModernBERT, small window": text(4, "modernbert", **SMALL_WINDOW, **LAST),
    "EuroBERT": text(4, "eurobert", num_key_value_heads=2),
    "NomicBERT": text(4, "nomic_bert"),
    "ConvBERT": text(4, "convbert", embedding_size=16, head_ratio=1),
    "MobileBERT": text(2, "mobilebert", embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
    "SqueezeBERT": text(4, "squeezebert", embedding_size=16, **partial_bases.GROUPS),
    "I-BERT": text(4, "ibert"),
    "RemBERT": text(4, "rembert", input_embedding_size=8, output_embedding_size=8),
    "RoFormer": text(4, "roformer", embedding_size=16),
    "Nystromformer": text(4, "nystromformer", num_landmarks=4, segment_means_seq_len=4),
    "YOSO": text(4, "yoso"),
    "ESM": text(4, "esm", mask_token_id=4),
    "Longformer": text(4, "longformer", attention_window=4),
    "BigBird": text(4, "big_bird", block_size=4, num_random_blocks=1),
    "CANINE": text(8, "canine", lengths=FIXED, num_hash_buckets=16, num_hash_functions=2, local_transformer_stride=16),
    "FNet": text(2, "fnet", inputs=lambda: {"input_ids": torch.randint(3, 50, (2, 7))}),
    "LayoutLM": text(4, "layoutlm"),
    "LiLT": text(4, "lilt", channel_shrink_ratio=2, hidden_size=24),
    "MarkupLM": text(4, "markuplm", max_depth=3, xpath_unit_hidden_size=4),
    "TAPAS": text(4, "tapas"),
    "XLM": text(4, "xlm", emb_dim=16, n_layers=2, n_heads=2),
    "RoCBert": text(4, "roc_bert", enable_pronunciation=False, enable_shape=False),
    "XLNet": text(4, "xlnet", max_position_embeddings=None, d_model=16, n_layer=2, n_head=2, d_inner=32),
    "Perceiver": Model(6, partial_bases.BASES["perceiver"].make, values("values", 9, 12)),
    "T5 encoder": Model(4, partial(of_transformers, "t5", name="T5EncoderModel", **T5), words),
    "CLIP text": text(4, "clip_text_model"),
    "SigLIP text": text(4, "siglip_text_model", name="SiglipTextModel"),
    "CamemBERT": text(4, "camembert"),
    "XLM-RoBERTa": text(4, "xlm-roberta"),
    "Data2Vec text": text(4, "data2vec-text"),
    "FlauBERT": text(4, "flaubert", emb_dim=16, n_layers=2, n_heads=2),
    "LayoutLMv3": text(4, "layoutlmv3", hidden_size=24, coordinate_size=4, shape_size=4, visual_embed=False),
    "Megatron-BERT": text(4, "megatron-bert"),
    "Splinter": text(4, "splinter"),
    "mT5 encoder": Model(4, partial(of_transformers, "mt5", name="MT5EncoderModel", **T5), words),
}

DECODERS = {
    "GPT-1": text(4, "openai-gpt", n_embd=16, n_layer=2, n_head=2),
    "GPT-2": text(4, "gpt2"),
    "GPT-Neo": text(4, "gpt_neo", num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], window_size=4),
    "GPT-NeoX": text(4, "gpt_neox"),
    "GPT-J": text(4, "gptj", n_embd=16, n_layer=2, n_head=2, n_positions=40, rotary_dim=4),
    "GPT-BigCode": text(4, "gpt_bigcode", n_embd=16, n_layer=2, n_head=2, n_positions=40),
    "CodeGen": text(4, "codegen", n_embd=16, n_layer=2, n_head=4, n_positions=40, rotary_dim=4),
    "CTRL": text(4, "ctrl", n_embd=16, n_layer=2, n_head=2, dff=32, n_positions=40),
    "BLOOM": text(4, "bloom", n_layer=2, n_head=2),
    "MPT": text(4, "mpt", d_model=16, n_layers=2, n_heads=2, max_seq_len=40),
    "OPT": text(4, "opt", ffn_dim=32, word_embed_proj_dim=16),
    "XGLM": text(4, "xglm", d_model=16, num_layers=2, attention_heads=2, ffn_dim=32),
    "BioGPT": text(4, "biogpt"),
    "Llama": decoder(4, "llama"),
    "Mistral": decoder(4, "mistral", sliding_window=8),
    "Mixtral": decoder(4, "mixtral", num_local_experts=2),
    "Qwen2": decoder(4, "qwen2"),
    "Qwen2-MoE": decoder(
        4, "qwen2_moe", **{**EXPERTS, "num_local_experts": 4}, shared_expert_intermediate_size=16, decoder_sparse_step=1
    ),
    "Qwen3": decoder(4, "qwen3", head_dim=8),
    "Qwen3-MoE": decoder(4, "qwen3_moe", head_dim=8, **EXPERTS),
    "Gemma": decoder(4, "gemma", **GROUPED),
    "Gemma 2": decoder(4, "gemma2", **GROUPED, sliding_window=8, query_pre_attn_scalar=8),
    "Gemma 3": decoder(4, "gemma3_text", **GROUPED, sliding_window=8, query_pre_attn_scalar=8),
    "Phi": decoder(4, "phi"),
    "Phi-3": decoder(4, "phi3"),
    "Falcon": text(4, "falcon", new_decoder_architecture=False, multi_query=True, parallel_attn=True, bias=False),
    "Falcon 40B": text(4, "falcon", new_decoder_architecture=True, num_kv_heads=2, parallel_attn=True, bias=False),
    "StableLM": decoder(4, "stablelm"),
    "StarCoder2": decoder(4, "starcoder2"),
    "Cohere": decoder(4, "cohere"),
    "Cohere 2": decoder(4, "cohere2", sliding_window=8, head_dim=8),
    "OLMo 2": decoder(4, "olmo2"),
    "OLMoE": decoder(4, "olmoe", **EXPERTS),
    "GraniteMoE": decoder(4, "granitemoe", **EXPERTS),
    "Persimmon": decoder(4, "persimmon"),
    "DiffLlama": decoder(4, "diffllama"),
    "Nemotron": decoder(4, "nemotron", head_dim=8),
    "GLM-4": decoder(4, "glm4", head_dim=8),
    "GPT-OSS": decoder(4, "gpt_oss", head_dim=8, sliding_window=8, **EXPERTS),
    "DeepSeek-V2": decoder(4, "deepseek_v2", **{**LATENT, **EXPERTS}),
    "DeepSeek-V3": decoder(4, "deepseek_v3", **{**LATENT, **EXPERTS}),
    "LFM2": decoder(4, "lfm2", layer_types=["conv", "full_attention"], block_multiple_of=8),
    "Mamba": text(2, "mamba", **STATES, lengths=FIXED),
    "Mamba 2": text(2, "mamba2", **STATES, num_heads=4, head_dim=8, n_groups=1, chunk_size=8),
    "FalconMamba": text(2, "falcon_mamba", **STATES, lengths=FIXED),
    "RWKV": text(4, "rwkv", lengths=FIXED, attention_hidden_size=16, context_length=40),
    "RecurrentGemma": text(
        4,
        "recurrent_gemma",
        lengths=FIXED,
        lru_width=16,
        block_types=["recurrent", "attention"],
        attention_window_size=8,
        **GROUPED,
    ),
    "Jamba": decoder(
        4,
        "jamba",
        num_experts=2,
        num_experts_per_tok=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=4,
        mamba_d_conv=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "Arcee": decoder(4, "arcee"),
    "GLM": decoder(4, "glm", head_dim=8),
    "Granite": decoder(4, "granite"),
    "Helium": decoder(4, "helium", head_dim=8),
    "OLMo": decoder(4, "olmo"),
    "SmolLM3": decoder(4, "smollm3", no_rope_layer_interval=2),
    "ImageGPT": text(4, "imagegpt", n_embd=16, n_layer=2, n_head=2, n_positions=40),
    "Decision Transformer": Model(
        4,
        partial(
            of_transformers,
            "decision_transformer",
            state_dim=5,
            act_dim=3,
            hidden_size=16,
            max_ep_len=20,
            n_layer=2,
            n_head=2,
            n_positions=60,
        ),
        _moves,
        {name: {0: "batch", 1: "moves"} for name in (*MOVE_WIDTHS, "timesteps", "attention_mask")},
    ),
}

STACKS = {
    "T5": Model(10, partial(of_transformers, "t5", **T5), two_texts),
    "UMT5": Model(10, partial(of_transformers, "umt5", **T5), two_texts),
    "LongT5": Model(10, partial(of_transformers, "longt5", **T5, local_radius=3), two_texts),
    "Switch Transformers": Model(10, partial(of_transformers, "switch_transformers", **T5, num_experts=2), two_texts),
    "mT5": Model(10, partial(of_transformers, "mt5", **T5), two_texts),
    "BART": two_stacks("bart"),
    "mBART": two_stacks("mbart"),
    "Blenderbot": two_stacks("blenderbot"),
    "Blenderbot small": two_stacks("blenderbot-small"),
    "BERT to BERT": Model(10, _bert_to_bert, two_texts),
    "Marian": two_stacks("marian", decoder_vocab_size=50),
    "Pegasus": two_stacks("pegasus"),
    "M2M-100": two_stacks("m2m_100"),
    "LED": two_stacks(
        "led", attention_window=4, max_encoder_position_embeddings=40, max_decoder_position_embeddings=40
    ),
    "BigBird-Pegasus": two_stacks("bigbird_pegasus", block_size=4, num_random_blocks=1),
    "ProphetNet": text(
        10,
        "prophetnet",
        inputs=two_texts,
        num_hidden_layers=None,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_encoder_attention_heads=2,
        num_decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        decoder_start_token_id=1,
    ),
    "Time series transformer": Model(10, partial(of_transformers, "time_series_transformer", **SERIES), _series),
    "Informer": Model(10, partial(of_transformers, "informer", **SERIES), _series),
    "DETR": Model(10, partial(partial_bases.Detr, 2), values("values", 3, 32, 32)),
    "torch.nn.Transformer": Model(
        10,
        lambda: nn.Transformer(16, 2, 2, 2, 32, batch_first=True),
        lambda: {"src": torch.randn(2, 7, 16), "tgt": torch.randn(2, 5, 16)},
        {"src": {0: "batch", 1: "tokens"}, "tgt": {0: "batch", 1: "others"}},
    ),
}
