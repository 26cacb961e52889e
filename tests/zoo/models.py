"""Tiny models of more than a hundred architectures, with the number of sublayers counted by hand.

A sublayer adds a result computed through weights to a residual stream: attention, an ffn, a mixer, all experts
together. A model of two usual layers has 4, an encoder–decoder of two layers each 10, a model without a stream 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import partial_bases
import small_bases
import torch
import transformers as hf
from torch import nn
from transformers.models.moonshine_streaming.configuration_moonshine_streaming import MoonshineStreamingEncoderConfig
from transformers.models.moonshine_streaming.modeling_moonshine_streaming import MoonshineStreamingEncoder

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = {"vocab_size": 50, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGE = {"image_size": 16, "patch_size": 4}
CONVOLUTIONS = {"conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_feat_extract_layers": 2} | {
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
TWO_STACKS = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")} | {
    "d_model": 16,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "decoder_start_token_id": 1,
}
T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "vocab_size": 50,
} | {"decoder_start_token_id": 0}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8} | {
    "num_key_value_heads": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
FIXED = ("sequence=16",)
STATES = {"state_size": 4, "expand": 2, "conv_kernel": 4, "time_step_rank": 4}

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Model:
    """Recipe for a model.

    Attributes:
        sublayers: number of sublayers, counted by hand.
        make: creates it with initial weights.
        inputs: example inputs; `None` if the folder determines them.
        axes: dynamic axes of the inputs. Default: those chosen by `capture`.
        lengths: lengths for `capture`, such as `sequence=16`, if torch supports only one.
    """

    sublayers: int
    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensors] | None = None
    axes: Mapping[str, Mapping[int, str]] | None = None
    lengths: tuple[str, ...] = ()

    def build(self) -> nn.Module:
        """The model; its matrices have standard deviation 0.2, biases and weights of norms keep their mean."""
        torch.manual_seed(0)
        module = self.make().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                mean = parameter if parameter.dim() < 2 else torch.zeros(())
                if parameter.is_floating_point():
                    parameter.copy_(torch.randn(parameter.shape) * (0.2 if parameter.dim() > 1 else 0.1) + mean)
        return module


def _of_transformers(kind: str, /, *, name: str | None = None, **settings: Any) -> nn.Module:
    """The bare model of a type of transformers; `name` is a class, if it is another one."""
    config = hf.AutoConfig.for_model(kind, **settings)
    config.use_cache = False
    return hf.AutoModel.from_config(config) if name is None else getattr(hf, name)(config)


def words() -> Tensors:
    ids = torch.randint(3, 50, (2, 7))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def two_texts() -> Tensors:
    return {**words(), "decoder_input_ids": torch.randint(3, 50, (2, 5))}


def text(
    sublayers: int,
    kind: str,
    /,
    *,
    inputs: Callable[[], Tensors] = words,
    lengths: tuple[str, ...] = (),
    **settings: Any,
) -> Model:
    """Return a token model of the usual sizes with the given settings; `None` removes a setting."""
    given = {name: value for name, value in {**SIZES, **WORDS, **settings}.items() if value is not None}
    return Model(sublayers, partial(_of_transformers, kind, **given), inputs, lengths=lengths)


def decoder(sublayers: int, kind: str, /, **settings: Any) -> Model:
    return text(sublayers, kind, **{"num_key_value_heads": 2, **settings})


def two_stacks(kind: str, /, **settings: Any) -> Model:
    """An encoder and a decoder."""
    return Model(10, partial(_of_transformers, kind, **{**WORDS, **TWO_STACKS, **settings}), two_texts)


def values(name: str, *shape: int) -> Callable[[], Tensors]:
    return lambda: {name: torch.randn(2, *shape)}


def image(sublayers: int, kind: str, /, *, size: int = 16, **settings: Any) -> Model:
    given = {**SIZES, **IMAGE, "image_size": size, **settings}
    given = {name: value for name, value in given.items() if value is not None}
    return Model(sublayers, partial(_of_transformers, kind, **given), values("pixel_values", 3, size, size))


def sound(sublayers: int, kind: str, /, **settings: Any) -> Model:
    """A model that reads samples of sound."""
    given = {**SIZES, **CONVOLUTIONS, "vocab_size": 20, "apply_spec_augment": False, **settings}
    return Model(sublayers, partial(_of_transformers, kind, **given), values("input_values", 100))


def by_hand(sublayers: int, base: small_bases.Architecture) -> Model:
    """A module written for the tests."""
    return Model(sublayers, base.make, lambda: base.inputs(2, 7), base.axes())


class Rezero(partial_bases.Block):
    """Adds what a learned factor lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(()))

    def add(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return x + self.gate * h


class Highway(partial_bases.Block):
    """Mixes by a gate that is computed from the stream (Srivastava et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 16)

    def add(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * h + (1 - gate) * x


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021): an ffn over the tokens, then one over the width."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.across, self.back = nn.LayerNorm(16), nn.Linear(9, 12), nn.Linear(12, 9)
        self.norm2, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm1(x).transpose(1, 2)
        x = x + self.back(nn.functional.gelu(self.across(tokens))).transpose(1, 2)
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Twice(nn.Module):
    """One block that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = partial_bases.Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.block(x))


class Noisy(partial_bases.Block):
    """Random in eval mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.randn_like(x))


class TwoTowers(nn.Module):
    """Two streams that meet in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Sequential(partial_bases.Block(), partial_bases.Block()) for _ in range(2))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.one(values) @ self.other(values).transpose(1, 2)


class Recurrent(nn.Module):
    """A recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(16, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


def _part(kind: str, part: str, /, **settings: Any) -> nn.Module:
    """A submodule of a model of transformers."""
    whole: nn.Module = _of_transformers(kind, **settings).get_submodule(part)
    return whole


def _moonshine() -> nn.Module:
    windows = {"sliding_windows": [[4, 0], [4, 2]], "num_key_value_heads": 2, "head_dim": 8}
    return MoonshineStreamingEncoder(MoonshineStreamingEncoderConfig(**SIZES, **windows))


def _llava() -> nn.Module:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**SIZES, **IMAGE),
        text_config=hf.LlamaConfig(**SIZES, **WORDS, num_key_value_heads=2),
        image_token_index=3,
        vision_feature_layer=-1,
    )
    return hf.LlavaModel(config)


def _clip() -> nn.Module:
    return hf.CLIPModel(hf.CLIPConfig(text_config={**SIZES, **WORDS}, vision_config={**SIZES, **IMAGE}))


def _images_and_words() -> Tensors:
    return {**words(), "pixel_values": torch.randn(2, 3, 16, 16)}


def _llava_inputs() -> Tensors:
    ids = torch.cat([torch.full((2, 16), 3), torch.randint(4, 50, (2, 7))], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 16, 16)}


def _vilt() -> Model:
    make = partial(_of_transformers, "vilt", **{**SIZES, **WORDS, **IMAGE}, max_image_length=-1)
    mask = {"pixel_mask": torch.ones(2, 16, 16, dtype=torch.int64)}
    ids = torch.randint(3, 50, (2, 7))
    types = {"token_type_ids": torch.zeros_like(ids)}
    inputs = lambda: {**_images_and_words(), **types, **mask}  # noqa: E731
    return Model(4, make, inputs)


def _series() -> Tensors:
    return {
        "past_values": torch.randn(2, 24),
        "past_time_features": torch.randn(2, 24, 1),
        "past_observed_mask": torch.ones(2, 24),
        "future_values": torch.randn(2, 4),
        "future_time_features": torch.randn(2, 4, 1),
    }


SERIES = {"prediction_length": 4, "context_length": 17, "lags_sequence": [1, 7], "num_time_features": 1} | {
    name: value for name, value in TWO_STACKS.items() if name != "decoder_start_token_id"
}
ENCODER = {name: value for name, value in TWO_STACKS.items() if name.startswith(("encoder", "d_model"))}
SPEECH = {"num_mel_bins": 8, "max_source_positions": 10, **TWO_STACKS, **WORDS, "decoder_start_token_id": 1}
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
    "T5 encoder": Model(4, partial(_of_transformers, "t5", name="T5EncoderModel", **T5), words),
    "CLIP text": text(4, "clip_text_model"),
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
}

STACKS = {
    "T5": Model(10, partial(_of_transformers, "t5", **T5), two_texts),
    "UMT5": Model(10, partial(_of_transformers, "umt5", **T5), two_texts),
    "LongT5": Model(10, partial(_of_transformers, "longt5", **T5, local_radius=3), two_texts),
    "Switch Transformers": Model(10, partial(_of_transformers, "switch_transformers", **T5, num_experts=2), two_texts),
    "BART": two_stacks("bart"),
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
    "Time series transformer": Model(10, partial(_of_transformers, "time_series_transformer", **SERIES), _series),
    "Informer": Model(10, partial(_of_transformers, "informer", **SERIES), _series),
    "DETR": Model(10, partial(partial_bases.Detr, 2), values("values", 3, 32, 32)),
    "torch.nn.Transformer": Model(
        10,
        lambda: nn.Transformer(16, 2, 2, 2, 32, batch_first=True),
        lambda: {"src": torch.randn(2, 7, 16), "tgt": torch.randn(2, 5, 16)},
        {"src": {0: "batch", 1: "tokens"}, "tgt": {0: "batch", 1: "others"}},
    ),
}

IMAGES = {
    "ViT": image(4, "vit"),
    "DeiT": image(4, "deit"),
    "BEiT": image(4, "beit"),
    "DINOv2": image(4, "dinov2", mlp_ratio=2),
    "DINOv2 with registers": image(4, "dinov2_with_registers", mlp_ratio=2, num_register_tokens=2),
    "DINOv3": image(4, "dinov3_vit"),
    "ViT-MAE": image(4, "vit_mae", mask_ratio=0.5),
    "YOLOS": image(4, "yolos", num_detection_tokens=3, image_size=[16, 16]),
    "CLIP vision": image(4, "clip_vision_model"),
    "SigLIP vision": image(4, "siglip_vision_model"),
    "DPT": image(4, "dpt", backbone_out_indices=[0, 1, 1, 1], is_hybrid=False),
    "Swin": image(
        6,
        "swin",
        size=32,
        embed_dim=8,
        window_size=2,
        depths=[1, 2],
        num_heads=[2, 2],
        num_attention_heads=None,
        num_hidden_layers=None,
    ),
    "Swin v2": image(
        6,
        "swinv2",
        size=32,
        embed_dim=8,
        window_size=2,
        depths=[1, 2],
        num_heads=[2, 2],
        num_attention_heads=None,
        num_hidden_layers=None,
    ),
    "Hiera": Model(8, partial(partial_bases._hiera, 2, 2), values("pixel_values", 3, 64, 64)),
    "Hiera, depths 1 and 1": Model(4, partial(partial_bases._hiera, 1, 1), values("pixel_values", 3, 64, 64)),
    "PVT v2": image(
        8,
        "pvt_v2",
        size=32,
        num_encoder_blocks=2,
        depths=[2, 2],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
    ),
    "SegFormer": image(
        8,
        "segformer",
        size=32,
        num_encoder_blocks=2,
        depths=[2, 2],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
    ),
    "PoolFormer": image(
        8,
        "poolformer",
        size=32,
        num_encoder_blocks=2,
        depths=[2, 2],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
        mlp_ratio=2.0,
    ),
    "ConvNeXt": image(4, "convnext", size=32, num_stages=2, depths=[2, 2], hidden_sizes=[8, 16]),
    "ResNet": Model(0, small_bases._residual_convolutions, values("pixel_values", 3, 16, 16)),
    "TimeSformer": Model(
        6,
        partial(_of_transformers, "timesformer", **SIZES, **IMAGE, num_frames=2),
        values("pixel_values", 2, 3, 16, 16),
    ),
    "ViViT": Model(
        4,
        partial(_of_transformers, "vivit", **SIZES, image_size=16, num_frames=2, tubelet_size=[2, 8, 8]),
        values("pixel_values", 2, 3, 16, 16),
    ),
}

SOUNDS = {
    "Wav2Vec2": sound(4, "wav2vec2"),
    "HuBERT": sound(4, "hubert"),
    "WavLM": sound(4, "wavlm"),
    "SEW": sound(4, "sew", squeeze_factor=2),
    "Data2Vec audio": sound(4, "data2vec-audio", conv_pos_kernel_size=3, num_conv_pos_embeddings=2),
    "Wav2Vec2-Conformer": sound(8, "wav2vec2-conformer", conv_depthwise_kernel_size=3),
    "Wav2Vec2-BERT": Model(
        8,
        partial(
            _of_transformers,
            "wav2vec2-bert",
            **SIZES,
            feature_projection_input_dim=12,
            conv_depthwise_kernel_size=3,
            apply_spec_augment=False,
        ),
        values("input_features", 11, 12),
        {"input_features": {0: "batch", 1: "frames"}},
    ),
    "Audio spectrogram transformer": Model(
        4,
        partial(
            _of_transformers,
            "audio-spectrogram-transformer",
            **SIZES,
            patch_size=4,
            max_length=24,
            num_mel_bins=8,
            frequency_stride=4,
            time_stride=4,
        ),
        values("input_values", 24, 8),
    ),
    "Whisper": Model(
        10,
        partial(_of_transformers, "whisper", **SPEECH, max_target_positions=40),
        lambda: {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": torch.randint(3, 50, (2, 5))},
    ),
    "Whisper encoder": Model(
        4, partial(_part, "whisper", "encoder", **SPEECH, max_target_positions=40), values("input_features", 8, 20)
    ),
    "Speech2Text": Model(
        10,
        partial(
            _of_transformers,
            "speech_to_text",
            **{**SPEECH, "max_source_positions": 40},
            max_target_positions=40,
            input_feat_per_channel=8,
            conv_channels=16,
        ),
        lambda: {"input_features": torch.randn(2, 24, 8), "decoder_input_ids": torch.randint(3, 50, (2, 5))},
    ),
    "Moonshine streaming encoder": Model(4, _moonshine, values("input_values", 480), lengths=("samples=480",)),
    "Parakeet encoder": Model(
        8,
        partial(
            _of_transformers,
            "parakeet_encoder",
            **SIZES,
            num_mel_bins=8,
            subsampling_factor=4,
            subsampling_conv_channels=4,
            conv_kernel_size=3,
        ),
        values("input_features", 24, 8),
    ),
}

MORE = {
    "CLIP": Model(8, _clip, _images_and_words),
    "LLaVA": Model(8, _llava, _llava_inputs),
    "ViLT": _vilt(),
    "BLIP text": text(4, "blip_text_model", name="BlipTextModel", encoder_hidden_size=16, is_decoder=False),
    "PatchTST": Model(
        4,
        partial(
            _of_transformers,
            "patchtst",
            d_model=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=32,
            context_length=24,
            patch_length=4,
            patch_stride=4,
            num_input_channels=2,
        ),
        values("past_values", 24, 2),
    ),
}

BASES = partial_bases.BASES
WRITTEN = {
    "x + a·h": by_hand(4, partial_bases.two(Rezero)),
    "x − h": by_hand(4, BASES["subtracting"]),
    "add(x, h, alpha)": by_hand(4, BASES["alpha"]),
    "lerp(x, h)": by_hand(4, BASES["lerp"]),
    "addcmul(x, h, a)": by_hand(4, BASES["addcmul"]),
    "stack(x, h).sum()": by_hand(4, BASES["stacked"]),
    "a·x + b·x0 + h": by_hand(4, BASES["from_start"]),
    "addmm(x, …), the ffn's": by_hand(4, BASES["addmm"]),
    "addmm(x, …), all": by_hand(4, BASES["all_addmm"]),
    "g·h + (1 − g)·x, a gate": by_hand(4, partial_bases.two(Highway)),
    "[batch, width, tokens]": by_hand(4, BASES["channels_first"]),
    "parallel, with a dropout": by_hand(4, BASES["falcon"]),
    "one block called twice": by_hand(4, small_bases.stream(Twice)),
    "linear attention, low rank": by_hand(4, small_bases.ARCHITECTURES["hand_written"]),
    "RMS norms, fused, gated": by_hand(4, small_bases.ARCHITECTURES["swiglu_block"]),
    "torch.nn.TransformerEncoder": by_hand(4, small_bases.ARCHITECTURES["torch_post_norm"]),
    "the same, norm first": by_hand(4, small_bases.ARCHITECTURES["torch_pre_norm"]),
    "MLP-Mixer": by_hand(4, small_bases.fixed(lambda: nn.Sequential(Mixer(), Mixer()), 9, 16)),
    "random in eval mode": by_hand(4, small_bases.stream(lambda: nn.Sequential(Noisy(), partial_bases.Block()))),
    "two towers": by_hand(8, small_bases.stream(TwoTowers)),
    "LSTM": by_hand(0, small_bases.stream(Recurrent)),
    "ffn without a residual": by_hand(0, small_bases.ARCHITECTURES["mlp"]),
    "convolutions": by_hand(0, small_bases.ARCHITECTURES["cnn"]),
}

MODELS: dict[str, dict[str, Model]] = {
    "Encoders of text": TEXTS,
    "Decoders": DECODERS,
    "Encoders with decoders": STACKS,
    "Images and video": IMAGES,
    "Speech and sound": SOUNDS,
    "Images with text, time series": MORE,
    "Modules written by hand": WRITTEN,
}
