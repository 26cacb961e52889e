"""Faster graphs for training: compared with the attention and the products of torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.graph.heads import make_head
from adapter_export.graph.kinds import KINDS
from adapter_export.sites.discover import discover
from adapter_export.text import Tokenizer
from adapter_export.torch_backend.attach import AdaptedModel, attach
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.torch_backend.packed_linear import PackedLinear, can_pack
from adapter_export.torch_backend.short_attention import attend
from adapter_export.training.loop.data import TextExamples, TrainingData
from adapter_export.training.loop.faster_graph import faster_graphs
from adapter_export.training.loop.init_adapter import init_adapter
from adapter_export.training.loop.settings import LoopSpec
from adapter_export.training.loop.train_loop import train

WHOLE = 2**30
PEOPLE = ("Who wrote Hamlet ?", "Who was the first man on the moon ?", "Who invented the telephone ?")
PLACES = ("Where is the highest mountain ?", "Where do penguins live ?", "What is the capital of Peru ?")
needs_packing = pytest.mark.skipif(not can_pack(), reason="this processor does not pack weights")


def heads(tokens: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, tokens, 3, 8, generator=generator).transpose(1, 2).requires_grad_()


def hidden(*places: int) -> Tensor:
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[0, 0, :, list(places)] = False
    return mask


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (None, {}),
        (hidden(3, 4), {"scale": 0.7}),
        (hidden(0, 1, 2, 3, 4), {}),
        (torch.where(hidden(4), 0.0, torch.finfo(torch.float32).min), {}),
        (torch.where(hidden(4), 0.5, -torch.inf)[:, :, :1], {}),
        (None, {"is_causal": True}),
    ],
    ids=["no mask", "bool", "no key", "lowest number", "infinite", "causal"],
)
def test_attention_equals_that_of_torch(mask: Tensor | None, options: dict[str, float | bool]) -> None:
    values = [heads(5, seed) for seed in range(3)]
    weights = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(3))
    results = []
    for function in (attend, F.scaled_dot_product_attention):
        result = function(*values, attn_mask=mask, **options)
        results.append((result, *torch.autograd.grad((result * weights).sum(), values)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@needs_packing
@pytest.mark.parametrize("biased", [True, False])
def test_packed_product_equals_that_of_torch(biased: bool) -> None:
    weight, bias = torch.randn(192, 96), torch.randn(192) if biased else None
    x = torch.randn(3, 96, 7).transpose(1, 2).requires_grad_()
    results = []
    for product in (PackedLinear(weight, bias, backward=True), lambda x: F.linear(x, weight, bias)):
        result = product(x)
        results.append((result, *torch.autograd.grad(result.square().sum(), x)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def base(minilm_archive: Path) -> TorchBase:
    return load_base(minilm_archive)


def houlsby(base: TorchBase) -> AdaptedModel:
    sites, kind = discover(flow_graph(base.flat)), KINDS["houlsby"]().with_widths(b=8)
    head = make_head(width=sites.width, labels=("person", "place"))
    return attach(
        base, init_adapter(kind, sites, name="a", base=base.fingerprint, scheme="small_normal", seed=0, head=head)
    )


def packed(model: AdaptedModel) -> int:
    return sum(isinstance(module, PackedLinear) for module in model.body.modules())


@pytest.mark.extended
@needs_packing
def test_training_equals_that_of_the_whole_graph(base: TorchBase) -> None:
    assert base.tokenizer is not None
    tokenizer = Tokenizer.from_json(base.tokenizer, 64)
    classes, names = np.repeat(np.arange(2), len(PLACES)), tuple(one.name for one in base.inputs)
    examples = TextExamples.of([*PEOPLE, *PLACES], classes, tokenizer, names)
    models, losses = [], []
    for size in (0, 1024):  # without memory, weights are not packed
        models.append(houlsby(base))
        settings = LoopSpec(epochs=1, batch_size=2, cache_mb=size)
        losses.append(train(models[-1], TrainingData(examples, examples), settings).losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    first, other = (torch.cat([tensor.flatten() for tensor in model.tensors().values()]) for model in models)
    assert torch.nn.functional.cosine_similarity(first, other, dim=0) > 0.9999
    assert packed(models[1]) == 0  # the copies are released


@needs_packing
def test_weights_are_packed_within_the_budget(base: TorchBase) -> None:
    model, square = houlsby(base), 4 * 384**2
    counts = []
    for budget in (WHOLE, 3 * square + 2 * square - 1, 0):
        with faster_graphs(model, [None, None], budget):
            counts.append(packed(model))
    # of 37 products, the query, key, value and output of the first layer have no gradient, and so one copy
    assert counts == [37, 4, 0]
    assert packed(model) == 0
