"""A part of a fused layer's output: cut out of it, and put back among the others."""

from __future__ import annotations

import torch
from torch import Tensor


def cut_part(whole: Tensor, start: int, end: int, blocks: int) -> Tensor:
    """The features of a part, [..., width].

    Args:
        whole: the fused layer's output.
        start: where the part begins in each block of the features.
        end: where it ends.
        blocks: how many equal blocks there are.
    """
    return _in_blocks(whole, blocks)[..., start:end].flatten(-2)


def join_part(whole: Tensor, part: Tensor, start: int, end: int, blocks: int) -> Tensor:
    """The fused layer's output with other features in the place of a part; the arguments are those of `cut_part`."""
    around, middle = _in_blocks(whole, blocks), _in_blocks(part, blocks)
    return torch.cat([around[..., :start], middle, around[..., end:]], -1).flatten(-2)


def _in_blocks(value: Tensor, blocks: int) -> Tensor:
    return value.reshape(*value.shape[:-1], blocks, -1)
