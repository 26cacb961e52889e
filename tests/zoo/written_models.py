"""Modules written by hand, for forms that no published model has."""

from __future__ import annotations

import partial_bases
import small_bases
import torch
from recipes import by_hand
from torch import nn


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
