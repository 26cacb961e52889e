"""A small text encoder in plain torch, and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F

from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base, save_base

WIDTH = 16
MAX_TOKENS = 24
GOOD = ("good", "fine", "great", "lovely")
BAD = ("bad", "dull", "poor", "awful")
OTHER = ("the", "film", "was", "this", "play", "and", "very", "a")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *OTHER)


class Layer(nn.Module):
    def __init__(self, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def attention(self, u: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (f(u).unflatten(-1, (2, WIDTH // 2)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def ffn(self, u: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(u)))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        if self.pre_norm:
            x = x + self.attention(self.norm1(x), bias)
            return x + self.ffn(self.norm2(x))
        x = self.norm1(x + self.attention(x, bias))
        return self.norm2(x + self.ffn(x))


class Encoder(nn.Module):
    """Embeddings and layers; returns the hidden states and a pooled vector by name."""

    def __init__(self, pre_norm: bool = False, layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(len(WORDS), WIDTH), nn.Embedding(MAX_TOKENS, WIDTH)
        self.layers = nn.ModuleList(Layer(pre_norm) for _ in range(layers))
        self.pooler = nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        bias = (1.0 - attention_mask[:, None, None, :].float()) * -1e9
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.tokens(input_ids) + self.positions(positions)
        for layer in self.layers:
            x = layer(x, bias)
        return {"hidden": x, "pooled": torch.tanh(self.pooler(x[:, 0]))}


def tokenizer_json() -> str:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str()


@cache
def _archive(pre_norm: bool) -> bytes:
    """The archive, which a process traces once."""
    torch.manual_seed(0)
    module = Encoder(pre_norm).eval()
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if "norm" not in name:
                tensor.normal_(0, 0.2)
    example = {"input_ids": torch.ones(2, 5, dtype=torch.long), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        save_base(module, example, path, tokenizer=tokenizer_json(), max_tokens=MAX_TOKENS)
        return path.read_bytes()


def save_encoder(path: Path, *, pre_norm: bool = False) -> Path:
    """The encoder as an archive; its weights are normal with standard deviation 0.2."""
    path.write_bytes(_archive(pre_norm))
    return path


def load_encoder(path: Path, *, pre_norm: bool = False) -> TorchBase:
    return load_base(save_encoder(path, pre_norm=pre_norm))


@dataclass(frozen=True)
class ExportedEncoder:
    """The encoder as a live module, as an archive, and as ONNX; do not change it."""

    encoder: Encoder
    in_torch: TorchBase
    in_onnx: OnnxBase

    @classmethod
    def read(cls, folder: Path, *, pre_norm: bool) -> ExportedEncoder:
        """From a folder that `write_exported` has filled."""
        encoder, in_torch = Encoder(pre_norm).eval(), load_base(folder / "model.pt")
        encoder.load_state_dict(in_torch.module().state_dict())
        return cls(encoder, in_torch, open_onnx(folder / "model.onnx"))


def write_exported(folder: Path, pre_norm: bool) -> None:
    """Write `model.pt` and `model.onnx` of the encoder."""
    export_onnx(load_encoder(folder / "model.pt", pre_norm=pre_norm), folder / "model.onnx")


def inputs(batch: int = 3, tokens: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens; the last row is padded."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[-1, tokens // 2 :] = 0
    return {
        "input_ids": torch.randint(4, len(WORDS), (batch, tokens), generator=generator),
        "attention_mask": mask,
    }
