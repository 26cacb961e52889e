"""Mixtures of experts of transformers in a form without kernels of its own, for the time of a capture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_FACTS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "down_proj")
"""What transformers' `use_experts_implementation` and its classes say of a module of experts."""


@contextmanager
def dense_experts(module: nn.Module) -> Iterator[None]:
    """Modules of experts compute every expert for every token, and weigh those that were not chosen with 0.

    The other forms multiply with the number of tokens that each expert got, which no exported program knows
    (`grouped_mm`, `eager`), or copy the weights of the chosen experts for each token (`batched_mm`).
    """
    experts = [inner for inner in module.modules() if all(hasattr(inner, name) for name in _FACTS)]
    try:
        for inner in experts:
            inner.forward = MethodType(_all_experts, inner)
        yield
    finally:
        for inner in experts:
            del inner.forward


def _all_experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The weighted sum [tokens, width] of the results of the chosen experts, as transformers defines it."""
    up, up_bias = ("gate_up_proj", "gate_up_proj_bias") if self.has_gate else ("up_proj", "up_proj_bias")
    activation = self._apply_gate if self.has_gate else self.act_fn
    value = activation(_products(self, hidden_states, up, up_bias))
    value = _products(self, value, "down_proj", "down_proj_bias")  # [experts, tokens, width]
    if self.has_post_expert_norm:
        value = self.post_expert_norm(value)
    chosen = top_k_index.unsqueeze(-1) == torch.arange(value.shape[0], device=value.device)  # [tokens, chosen, experts]
    weights = (chosen.to(value.dtype) * top_k_weights.unsqueeze(-1)).sum(1)
    result: Tensor = (value * weights.transpose(0, 1).unsqueeze(-1)).sum(0)
    return result.to(hidden_states.dtype)


def _products(experts: Any, value: Tensor, name: str, bias: str) -> Tensor:
    weight = getattr(experts, name)
    product = torch.matmul(value, weight if experts.is_transposed else weight.transpose(-2, -1))
    return product + getattr(experts, bias).unsqueeze(1) if experts.has_bias else product
