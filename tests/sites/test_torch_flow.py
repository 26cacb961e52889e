"""The neutral view of an FX graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from adapter_export.sites.view import FlowGraph, FlowNode
from adapter_export.torch_backend.fx_view import flow_graph


class Written(nn.Module):
    """A function of a stream [batch, 4, 8] and a weight [8, 8]."""

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.weight)


def view(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> FlowGraph:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Written(function), (torch.randn(2, 4, 8),), dynamic_shapes=({0: batch},))
    return flow_graph(program.module(check_guards=False))


def last(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> FlowNode:
    flow = view(function)
    return next(node for node in flow.nodes if node.outputs == flow.outputs)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: nn.functional.linear(x, w),
        lambda x, w: x @ w.T,
        lambda x, w: torch.bmm(x, w.t().expand(x.shape[0], 8, 8)),
        lambda x, w: torch.einsum("btd,ed->bte", x, w),
        lambda x, w: torch.einsum("ed,btd->bte", w, x),
        lambda x, w: torch.matmul(x, torch.softmax(w, -1)),
    ],
)
def test_products_with_derived_weights_are_weighted(function):
    product = last(function)
    assert (product.kind, product.weighted, len(product.inputs)) == ("product", True, 1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: torch.bmm(x, x.transpose(1, 2)),
        lambda x, w: torch.einsum("btd,bsd->bts", x, x),
        lambda x, w: torch.baddbmm(w[:4, :4], x, x.transpose(1, 2)),
    ],
)
def test_products_of_activations_mix_tokens_without_weights(function):
    product = last(function)
    assert (product.kind, product.weighted, product.mixes_tokens) == ("product", False, True)


@pytest.mark.parametrize("function", [lambda x, w: x + x.relu(), lambda x, w: x.relu().add_(x)])
def test_the_sum_of_two_activations_is_an_add(function):
    assert last(function).kind == "add"


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x + 1.0,
        lambda x, w: x + w[0],
        lambda x, w: torch.add(x, x.relu(), alpha=0.5),  # the added value is not the summand
        lambda x, w: x + torch.arange(x.shape[1]).unsqueeze(-1),
        lambda x, w: x + torch.zeros_like(x),
    ],
)
def test_sums_without_two_activations_are_other_nodes(function):
    assert last(function).kind == "other"


def test_only_a_reshape_that_changes_the_shape_moves_anything():
    assert last(lambda x, w: x.view(-1, 4, 8)).kind == "other"
    assert last(lambda x, w: x.view(-1, 8)).kind == "layout"
    assert last(lambda x, w: x.transpose(1, 2)).kind == "layout"


def test_fused_attention_is_an_attention_node():
    assert last(lambda x, w: nn.functional.scaled_dot_product_attention(x, x, x)).kind == "attention"


def test_the_values_are_called_like_the_nodes_of_the_graph():
    flow = view(lambda x, w: (x @ w).relu())
    assert [(node.name, node.inputs) for node in flow.nodes] == [("matmul", ("x",)), ("relu", ("matmul",))]
    assert flow.outputs == ("relu",)


def test_axes_keep_the_symbols_of_the_graph():
    flow = view(lambda x, w: x @ w)
    batch, *rest = flow.shapes["matmul"]
    assert isinstance(batch, str)
    assert rest == [4, 8]
    assert flow.shapes["x"] == flow.shapes["matmul"]
