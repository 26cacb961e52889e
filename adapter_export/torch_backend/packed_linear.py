"""Products with frozen weights that are packed once for oneDNN, in both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

SMALLEST = 2**14
"""Minimum elements of a weight that is packed."""


def can_pack() -> bool:
    """Return whether this torch and this processor have the packed product."""
    # torch's own compiler calls these operators; only x86 was measured
    there = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return torch._C._has_mkldnn and there and "AVX" in torch.backends.cpu.get_cpu_capability()


class PackedLinear(nn.Module):
    """`x @ weight.T + bias` with a frozen float32 `weight` [out, in] on the CPU; equal to it within rounding.

    It has a copy of the weight in the layout that oneDNN reads, and another one for gradients if `backward` is true.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, backward: bool) -> None:
        super().__init__()
        # not buffers: a packed tensor cannot be saved or moved
        self._bias = None if bias is None else bias.detach()
        self._packed = _packed(weight.detach())
        self._transposed = _packed(weight.detach().t().contiguous()) if backward else None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the product of x [..., in]."""
        if self._transposed is None:
            return _product(x, self._packed, self._bias)
        result: Tensor = _Product.apply(x, self._packed, self._transposed, self._bias)  # type: ignore[no-untyped-call]
        return result


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, transposed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.transposed = transposed
        return _product(x, packed, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _product(gradients[0], ctx.transposed, None), None, None, None  # type: ignore[attr-defined]


def _packed(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), packed, bias, "none", [], "")
    return result
