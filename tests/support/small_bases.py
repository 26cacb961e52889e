"""Small bases of many architectures with random weights, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import transformers as hf
from torch import nn

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ONE_LAYER = SIZE | {"num_hidden_layers": 1}
"""Layers of a base with the same structure as another base of two layers."""

WORDS = {"vocab_size": 50, "max_position_embeddings": 40}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 40}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
ALTERNATING = {"global_attn_every_n_layers": 2, "local_attention": 4, "pad_token_id": 0, "cls_token_id": 1} | {
    "sep_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE = {"image_size": 16, "patch_size": 4}


class TextBase(nn.Module):
    """A model of Hugging Face behind an interface of plain tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]


class ValuesBase(nn.Module):
    """A model that reads numbers: images, sound, or a residual stream as it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result = self.model(values)
        return result if isinstance(result, torch.Tensor) else result[0]


@dataclass(frozen=True)
class Architecture:
    """Recipe for a base and its inputs.

    Attributes:
        make: creates the base.
        shape: shape of one input.
        reads: name of the input.
        stretches: whether the first axis of the shape is dynamic.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (7,)
    reads: str = "input_ids"
    stretches: bool = True

    def inputs(self, batch: int, tokens: int) -> dict[str, torch.Tensor]:
        """Random inputs; the last text of a batch ends in padding."""
        shape = (batch, tokens if self.stretches else self.shape[0], *self.shape[1:])
        if self.reads == "values":
            return {"values": torch.randn(shape)}
        mask = torch.ones(shape, dtype=torch.int64)
        mask[-1, -2:] = 0
        return {"input_ids": torch.randint(3, 50, shape), "attention_mask": mask}

    def arrays(self, batch: int, tokens: int) -> dict[str, np.ndarray]:
        """Such inputs for ONNX Runtime."""
        return {name: value.numpy() for name, value in self.inputs(batch, tokens).items()}

    def axes(self) -> dict[str, dict[int, str]]:
        """The names of the free axes of each input."""
        names = {0: "batch", 1: "tokens"} if self.stretches else {0: "batch"}
        return dict.fromkeys(self.inputs(2, 7), names)

    def build(self, std: float) -> nn.Module:
        """A base with random weights; biases and the weights of norms keep their mean."""
        torch.manual_seed(0)
        module = self.make().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape) * std + (parameter if parameter.dim() == 1 else 0.0))
        return module


def text(name: str, **settings: object) -> Architecture:
    """A model of transformers by the beginning of its classes' names, which are imported when it is made."""
    return Architecture(lambda: TextBase(getattr(hf, f"{name}Model")(getattr(hf, f"{name}Config")(**settings))))


def fixed(make: Callable[[], nn.Module], *shape: int) -> Architecture:
    """A base of images or sound, of one size."""
    return Architecture(lambda: ValuesBase(make()), shape, "values", stretches=False)


def stream(make: Callable[[], nn.Module]) -> Architecture:
    """A base that reads [batch, tokens, 16]."""
    return Architecture(lambda: ValuesBase(make()), (7, 16), "values")


def _torch_encoder(*, norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    norm = nn.LayerNorm(16) if norm_first else None
    return nn.TransformerEncoder(layer, 2, norm=norm, enable_nested_tensor=False)


def _two_stages() -> nn.Module:
    window = {"window_size": 2, "depths": [1, 2], "num_heads": [2, 2]}
    return hf.SwinModel(hf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, **window))


def _sound_encoder() -> nn.Module:
    features = {"conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return hf.Wav2Vec2Model(hf.Wav2Vec2Config(**ONE_LAYER, **features, **positions))


def _bart_encoder() -> nn.Module:
    config = hf.BartConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, **WORDS)
    return TextBase(hf.BartModel(config).get_encoder())


def _t5_encoder() -> nn.Module:
    config = hf.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50)
    return TextBase(hf.T5EncoderModel(config))


def _whisper_encoder() -> nn.Module:
    size = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    size["decoder_attention_heads"] = 2
    config = hf.WhisperConfig(num_mel_bins=8, max_source_positions=10, vocab_size=50, pad_token_id=0, **size)
    return hf.WhisperModel(config).get_encoder()


def _residual_convolutions() -> nn.Module:
    return hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))


class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class SwiGlu(nn.Module):
    """A gated ffn, beside it a low-rank branch as adapters have it that were never merged."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = RmsNorm()
        self.gate, self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16, bias=False)
        self.low, self.high = nn.Linear(32, 4, bias=False), nn.Linear(4, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        read = self.norm(x)
        inner = nn.functional.silu(self.gate(read)) * self.up(read)
        return x * 0.5 + (self.down(inner) + self.high(self.low(inner)))


class GatedBlock(nn.Module):
    """A layer as in Llama: RMS norms, one projection for query, key and value, a SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.qkv, self.out = RmsNorm(), nn.Linear(16, 48, bias=False), nn.Linear(16, 16, bias=False)
        self.norm2, self.gate_up, self.down = RmsNorm(), nn.Linear(16, 64, bias=False), nn.Linear(32, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) / 8**0.5, -1)
        x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up)


class LinearAttention(nn.Module):
    """Attention without a softmax (Katharopoulos et al. 2020, §3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=-1)
        memory = torch.einsum("btd,bte->bde", nn.functional.elu(key) + 1, value)
        return x + self.out(torch.einsum("btd,bde->bte", nn.functional.elu(query) + 1, memory))


ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": text("Bert", **SIZE, **WORDS),
    "roberta": text("Roberta", **ONE_LAYER, **WORDS),
    "distilbert": text("DistilBert", dim=16, n_layers=2, n_heads=2, hidden_dim=32, **WORDS),
    "albert": text("Albert", embedding_size=8, **SIZE, **WORDS),
    "gpt2": text("GPT2", **GPT, use_cache=False),
    "llama": text("Llama", **SIZE, **WORDS, use_cache=False),
    "gpt_neox": text("GPTNeoX", **SIZE, **WORDS, use_cache=False),
    "cohere": text("Cohere", **ONE_LAYER, **WORDS, use_cache=False),
    "opt": text(
        "OPT",
        ffn_dim=32,
        word_embed_proj_dim=16,
        use_cache=False,
        **{name: ONE_LAYER[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
        **WORDS,
    ),
    "mixtral": text(
        "Mixtral",
        num_key_value_heads=2,
        num_local_experts=2,
        use_cache=False,
        **ONE_LAYER,
        **WORDS,
    ),
    "electra": text("Electra", embedding_size=8, **ONE_LAYER, **WORDS),
    "deberta_v2": text("DebertaV2", **DISENTANGLED, **ONE_LAYER, **WORDS),
    "modernbert": text("ModernBert", **ALTERNATING, **SIZE, **WORDS),
    "mpnet": text("MPNet", **ONE_LAYER, **WORDS),
    "qwen2": text("Qwen2", num_key_value_heads=1, use_cache=False, **ONE_LAYER, **WORDS),
    "gemma": text("Gemma", num_key_value_heads=1, head_dim=8, use_cache=False, **ONE_LAYER, **WORDS),
    "phi": text("Phi", use_cache=False, **ONE_LAYER, **WORDS),
    "t5_encoder": Architecture(_t5_encoder),
    "bart_encoder": Architecture(_bart_encoder),
    "whisper_encoder": fixed(_whisper_encoder, 8, 20),
    "deit": fixed(lambda: hf.DeiTModel(hf.DeiTConfig(**ONE_LAYER, **IMAGE)), 3, 16, 16),
    "swiglu_block": stream(lambda: nn.Sequential(GatedBlock(), GatedBlock(), RmsNorm())),
    "vit": fixed(lambda: hf.ViTModel(hf.ViTConfig(**SIZE, **IMAGE)), 3, 16, 16),
    "swin": fixed(_two_stages, 3, 32, 32),
    "wav2vec2": fixed(_sound_encoder, 100),
    "torch_post_norm": stream(lambda: _torch_encoder(norm_first=False)),
    "torch_pre_norm": stream(lambda: _torch_encoder(norm_first=True)),
    "hand_written": stream(lambda: nn.Sequential(LinearAttention(), SwiGlu(), LinearAttention(), SwiGlu(), RmsNorm())),
    "resnet": fixed(_residual_convolutions, 3, 16, 16),
    "cnn": fixed(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5)), 3, 16, 16),
    "mlp": stream(lambda: nn.Sequential(nn.Linear(16, 32), nn.GELU(approximate="tanh"), nn.Linear(32, 16))),
    "linear": stream(lambda: nn.Linear(16, 16)),
}
