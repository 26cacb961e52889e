"""Heads read from the graph of a complete model: their operations, or the name of an unsupported one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from small_encoder import WIDTH, WORDS, Encoder
from torch import Tensor, nn
from torch.nn import functional as F

from adapter_export.errors import AdapterError
from adapter_export.numerics.evaluate_adapter import evaluate
from adapter_export.torch_backend.base.base_head import trace_head
from adapter_export.torch_backend.base.torch_base import TorchBase, base_of

Parts = Callable[["Whole", Tensor, Tensor], Tensor]


class Whole(nn.Module):
    """An encoder, and heads by name, each a function of the final hidden state and the mask."""

    def __init__(self, heads: Mapping[str, Parts]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.heads = Encoder(layers=1), heads
        self.dense, self.other, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.norm, self.plain = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-3)
        self.matrix, self.bias = nn.Parameter(torch.zeros(WIDTH, 3)), nn.Parameter(torch.zeros(3))
        self.gains, self.conv = nn.Parameter(torch.zeros(WIDTH)), nn.Conv1d(WIDTH, 3, 1)
        for tensor in self.parameters():
            nn.init.normal_(tensor, std=0.2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Compute the hidden state, too, so that a head can be compared with its input."""
        hidden = self.encoder(input_ids, attention_mask)["hidden"]
        return {"hidden": hidden} | {name: head(self, hidden, attention_mask) for name, head in self.heads.items()}


def mean(hidden: Tensor, mask: Tensor, least: float = 1e-9) -> Tensor:
    kept = mask.unsqueeze(-1).expand(hidden.shape).float()
    return (hidden * kept).sum(1) / torch.clamp(kept.sum(1), min=least)


HEADS: dict[str, Parts] = {
    "a linear of each token": lambda m, h, _: m.out(h),
    "tanh": lambda m, h, _: m.out(torch.tanh(m.dense(h[:, 0]))),
    "first token cut out": lambda m, h, _: m.out(h[:, 0:1].squeeze(1)),
    "per token, then the first": lambda m, h, _: m.out(F.gelu(m.dense(h)))[:, 0],
    "masked mean": lambda m, h, mask: m.out(mean(h, mask)),
    "masked mean, counted apart": lambda m, h, mask: m.out(
        (h * mask.unsqueeze(-1)).sum(1) / mask.sum(1).unsqueeze(-1).clamp(min=1)
    ),
    "gelu by tanh, silu": lambda m, h, _: m.out(F.silu(m.other(F.gelu(m.dense(h[:, 0]), approximate="tanh")))),
    "leaky relu, elu": lambda m, h, _: m.out(F.elu(m.other(F.leaky_relu(m.dense(h[:, 0]), 0.2)))),
    "norms": lambda m, h, _: m.out(m.plain(m.norm(h[:, 0]))),
    "a product and its bias": lambda m, h, _: h[:, 0] @ m.matrix + m.bias,
    "a product without a bias": lambda m, h, _: torch.matmul(h[:, 0], m.matrix),
    "addmm": lambda m, h, _: torch.addmm(m.bias, h[:, 0], m.matrix),
    "factors": lambda m, h, _: m.out(h[:, 0] * m.gains * 0.5) / 4,
    "sums": lambda m, h, _: m.out(h[:, 0] + h[:, 0] * torch.tanh(h[:, 0])),
    "lengths of 1": lambda m, h, _: m.out(F.normalize(m.dense(h[:, 0]), dim=-1)),
    "dropout": lambda m, h, _: m.out(F.dropout(h[:, 0], 0.3, training=m.training)),
}


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    mask = (torch.arange(6) < torch.tensor([[6], [4], [1]])).long()
    return {"input_ids": torch.randint(0, len(WORDS), (3, 6)) * mask, "attention_mask": mask}


@pytest.fixture(scope="module")
def known() -> tuple[Whole, TorchBase]:
    """A model with all supported heads, and its program."""
    model = Whole(HEADS).eval()
    return model, base_of(model, inputs())


@pytest.mark.parametrize("name", HEADS)
def test_a_head_computes_what_the_model_computed(name: str, known: tuple[Whole, TorchBase]) -> None:
    model, base = known
    found = trace_head(base, [name])
    given = inputs()
    with torch.inference_mode():
        computed = model(**given)
    values = {"hidden": computed["hidden"].numpy(), "mask": given["attention_mask"].numpy()}
    result = evaluate(found.graph, {name: values[name] for name in found.graph.inputs}, found.weights)
    assert found.graph.parameter_shapes(found.widths) == {name: each.shape for name, each in found.weights.items()}
    assert computed[name].abs().max() > 0.05
    assert np.abs(result - computed[name].numpy()).max() < 1e-5
    # the usual names of heads, so that they share their slots
    assert "classifier.weight" in found.graph.parameters


UNKNOWN: dict[str, tuple[Parts, str]] = {
    "another activation": (lambda m, h, _: m.out(torch.sin(h[:, 0])), "aten.sin.default"),
    "an elu of its own": (lambda m, h, _: m.out(F.elu(h[:, 0], alpha=0.5)), "aten.elu.default"),
    "the second token": (lambda m, h, _: m.out(h[:, 1]), "aten.select.int"),
    "the last token": (lambda m, h, _: m.out(h[:, -1]), "aten.select.int"),
    "the largest": (lambda m, h, _: m.out(h.amax(1)), "aten.amax.default"),
    "a mean with the padding": (lambda m, h, _: m.out(h.mean(1)), "aten.mean.dim"),
    "a mean of at least three": (lambda m, h, mask: m.out(mean(h, mask, 3.0)), "aten.div.Tensor"),
    "another mask": (lambda m, h, mask: m.out(mean(h, 1 - mask)), "aten.div.Tensor"),
    "longer than 1": (lambda m, h, _: m.out(F.normalize(h[:, 0], dim=-1, eps=0.1)), "aten.div.Tensor"),
    "lengths by another norm": (lambda m, h, _: m.out(F.normalize(h[:, 0], p=1.0, dim=-1)), "aten.div.Tensor"),
    "a convolution": (lambda m, h, _: m.conv(h.transpose(1, 2)).transpose(1, 2), "aten.transpose.int"),
    "half a token": (lambda m, h, _: m.out(torch.cat([h[:, 0, :8], h[:, 0, 8:]], -1)), "aten.cat.default"),
    "a sum with a number": (lambda m, h, _: m.out(h[:, 0] + 1), "aten.add.Tensor"),
    "the mask itself": (lambda m, h, mask: m.out(h[:, 0] * mask[:, :1]), "aten.slice.Tensor"),
}


@pytest.fixture(scope="module")
def unknown() -> TorchBase:
    """A model with all unsupported heads."""
    return base_of(Whole({name: head for name, (head, _) in UNKNOWN.items()}), inputs())


@pytest.mark.parametrize("name", UNKNOWN)
def test_unsupported_operations_of_a_head_are_named(name: str, unknown: TorchBase) -> None:
    with pytest.raises(AdapterError, match=f"head language lacks; found `{UNKNOWN[name][1]}`"):
        trace_head(unknown, [name])


def test_missing_head_outputs_are_refused(known: tuple[Whole, TorchBase]) -> None:
    with pytest.raises(AdapterError, match="differ from those of its class; found `hidden`, `a linear of"):
        trace_head(known[1], ["start_logits"])
