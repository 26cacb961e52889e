"""Small bases whose sublayers are hard to find: each must be found whole, or refused with its reason."""

from __future__ import annotations

import torch
import transformers as hf
from small_bases import ONE_LAYER, SIZE, WORDS, Architecture, TextBase, fixed, stream
from torch import nn

GROUPS = {f"{name}_groups": 1 for name in ("q", "k", "v", "post_attention", "intermediate", "output")}


class Block(nn.Module):
    """Attention and an ffn with norms before them; `add` adds a sublayer's output to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm2, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(self.norm1(x)).chunk(3, -1)
        return self.out(torch.softmax(query @ key.transpose(1, 2) / 4, -1) @ value)

    def ffn(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.gelu(self.up(self.norm2(x))))

    def add(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return x + h

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.add(x, self.attention(x))
        return self.add(x, self.ffn(x))


class Subtracting(Block):
    """Writes `x + h` as `x - (-h)`."""

    def add(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return x - h


class Alpha(Block):
    def add(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.add(x, h, alpha=0.5)


class Lerp(Block):
    def add(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.lerp(x, h, 0.25)


class Addcmul(Block):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))

    def add(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(x, h, self.scale)


class Stacked(Block):
    def add(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, h]).sum(0)


class FromStart(nn.Module):
    """`x = a·x + b·x0 + h`, with the start of the stream in each sum."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.mix = nn.Parameter(torch.rand(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = x
        for number, block in enumerate(self.blocks):
            a, b = self.mix[2 * number]
            x = a * x + b * start + block.attention(x)
            a, b = self.mix[2 * number + 1]
            x = a * x + b * start + block.ffn(x)
        return x


class Addmm(Block):
    """The residual sum of the ffn is that of `torch.addmm`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        inner = nn.functional.gelu(self.up(self.norm2(x)))
        batch, tokens, width = x.shape
        flat = torch.addmm(x.reshape(batch * tokens, width), inner.reshape(batch * tokens, 32), self.down.weight.t())
        return flat.reshape(batch, tokens, width)


class AllAddmm(Addmm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(self.norm1(x)).chunk(3, -1)
        context = torch.softmax(query @ key.transpose(1, 2) / 4, -1) @ value
        batch, tokens, width = x.shape
        flat = torch.addmm(x.reshape(batch * tokens, width), context.reshape(batch * tokens, 16), self.out.weight.t())
        x = flat.reshape(batch, tokens, width)
        inner = nn.functional.gelu(self.up(self.norm2(x)))
        flat = torch.addmm(x.reshape(batch * tokens, width), inner.reshape(batch * tokens, 32), self.down.weight.t())
        return flat.reshape(batch, tokens, width)


class ChannelsFirst(nn.Module):
    """A transformer of [batch, width, tokens], whose weights multiply from the left."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Parameter(torch.randn(16, 16)) for _ in range(4))
        self.up, self.down = nn.Parameter(torch.randn(32, 16)), nn.Parameter(torch.randn(16, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax((self.q @ x).transpose(1, 2) @ (self.k @ x), -1)
        x = x + self.o @ ((self.v @ x) @ weights.transpose(1, 2))
        return x + self.down @ nn.functional.gelu(self.up @ x)


class Multiplied(Block):
    """Multiplies the stream by what the ffn computes, which is no sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        return x * self.ffn(x)


class FalconBlock(nn.Module):
    """Parallel attention and ffn, a dropout between their sum and the residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.block.attention(x) + self.block.ffn(x)
        return x + nn.functional.dropout(h, 0.1, training=self.training)


def _hiera(*depths: int) -> nn.Module:
    config = hf.HieraConfig(
        embed_dim=16,
        image_size=[64, 64],
        patch_kernel=[7, 7],
        patch_stride=[4, 4],
        patch_padding=[3, 3],
        num_heads=[2, 4],
        depths=list(depths),
        num_query_pool=1,
        query_stride=[2, 2],
        masked_unit_size=[8, 8],
        masked_unit_attention=[True, False],
        embed_dim_multiplier=2.0,
    )
    return hf.HieraModel(config)


class Detr(nn.Module):
    """With as many layers in the encoder as in the decoder."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        counts = {"layers": layers, "attention_heads": 2}
        size = {f"{part}_{name}": count for part in ("encoder", "decoder") for name, count in counts.items()}
        backbone = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        backbone.out_features = ["stage2"]
        config = hf.DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=backbone,
            d_model=16,
            num_queries=5,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            **size,
        )
        self.model = hf.DetrModel(config)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.model(values).last_hidden_state


def _perceiver() -> nn.Module:
    config = hf.PerceiverConfig(
        num_latents=6,
        d_latents=16,
        d_model=12,
        num_blocks=1,
        num_self_attends_per_block=2,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
    )
    return hf.PerceiverModel(config)


def _beit() -> nn.Module:
    return hf.BeitModel(hf.BeitConfig(**SIZE, image_size=16, patch_size=4), add_pooling_layer=False)


def two(block: type[nn.Module]) -> Architecture:
    return stream(lambda: nn.Sequential(block(), block()))


BASES = {
    "subtracting": two(Subtracting),
    "alpha": two(Alpha),
    "lerp": two(Lerp),
    "addcmul": two(Addcmul),
    "stacked": two(Stacked),
    "from_start": stream(FromStart),
    "addmm": two(Addmm),
    "all_addmm": two(AllAddmm),
    "multiplied": two(Multiplied),
    "falcon": two(FalconBlock),
    "channels_first": fixed(lambda: nn.Sequential(ChannelsFirst(), ChannelsFirst()), 16, 7),
    "of_several_forms": stream(lambda: nn.Sequential(FromStart(), AllAddmm(), FalconBlock())),
    "hiera": fixed(lambda: _hiera(1, 2), 3, 64, 64),
    "detr": Architecture(lambda: Detr(1), (3, 32, 32), "values", stretches=False),
    "perceiver": fixed(_perceiver, 9, 12),
    "squeezebert": Architecture(
        lambda: TextBase(hf.SqueezeBertModel(hf.SqueezeBertConfig(embedding_size=16, **ONE_LAYER, **WORDS, **GROUPS))),
        stretches=False,
    ),
    "beit": fixed(_beit, 3, 16, 16),
}
