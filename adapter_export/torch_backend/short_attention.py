"""Attention over few tokens, for which torch's fused kernel on the CPU takes several times as long as its products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_LARGEST = 64 * 64
"""Maximum scores of a head that are computed here; the fused kernel is faster for more."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return `scaled_dot_product_attention` of the arguments, within rounding."""
    plain = not (dropout_p or is_causal or enable_gqa) and query.ndim == 4 and query.dtype == torch.float32
    few = query.shape[-2] * key.shape[-2] <= _LARGEST and query.shape[:2] == key.shape[:2] == value.shape[:2]
    if plain and few and _is_simple(attn_mask):
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        result: Tensor = _Attention.apply(query, key, value, attn_mask, factor)  # type: ignore[no-untyped-call]
        return result
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _is_simple(mask: Tensor | None) -> bool:
    """Return whether a mask has no gradient, and leaves each query a key: torch returns 0 for one without keys."""
    if mask is None:
        return True
    seen = mask if mask.dtype == torch.bool else mask > -torch.inf
    return not mask.requires_grad and bool(seen.any(-1).all())


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ · factor + mask) v, with the gradients of its products."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, factor: float) -> Tensor:
        q, k, v = (each.flatten(0, 1) for each in (query, key, value))
        scores = _scaled(q, k.transpose(1, 2), factor).view(*query.shape[:-1], key.shape[-2])
        if mask is not None:
            scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
        shares = torch.softmax(scores, -1).flatten(0, 1)
        ctx.save_for_backward(q, k, v, shares)
        ctx.rows, ctx.factor = query.shape[:2], factor
        result: Tensor = torch.bmm(shares, v)
        return result.view(*query.shape[:-1], value.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shares = ctx.saved_tensors
        of_result = gradients[0].flatten(0, 1)
        of_value = torch.bmm(shares.transpose(1, 2), of_result)
        of_shares = torch.bmm(of_result, v.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
        of_query, of_key = _scaled(of_scores, k, ctx.factor), _scaled(of_scores.transpose(1, 2), q, ctx.factor)
        return (*(each.view(*ctx.rows, *each.shape[1:]) for each in (of_query, of_key, of_value)), None, None)


def _scaled(first: Tensor, other: Tensor, factor: float) -> Tensor:
    """Return the product of batches of matrices, times a factor, without another pass over the result."""
    return torch.baddbmm(first.new_empty(()), first, other, beta=0, alpha=factor)
