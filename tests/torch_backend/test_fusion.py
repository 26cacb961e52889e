"""Fusions are trained with their members frozen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_task import LABELS, make_adapter, review_data, sites_of, with_random_weights

from adapter_export.errors import AdapterError, TrainingError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose import FusionOptions, adapter_fusion, stack, weighted_fusion
from adapter_export.graph.compose.attention import temperature_of
from adapter_export.graph.compose.members import own_tensors
from adapter_export.graph.heads import make_head
from adapter_export.torch_backend.attach import AdaptedModel, attach
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.training.loop.checkpoint import run_identity
from adapter_export.training.loop.data import TrainingData
from adapter_export.training.loop.init_adapter import with_head
from adapter_export.training.loop.settings import LoopSpec
from adapter_export.training.loop.train_loop import train

QUICK = LoopSpec(epochs=2, batch_size=16, learning_rate=0.01)


@pytest.fixture(scope="module")
def data(base: TorchBase) -> TrainingData:
    return review_data(base, 64)


@pytest.fixture(scope="module")
def members(base: TorchBase) -> list[Adapter]:
    kinds = {"a": "houlsby", "b": "seq_bn", "c": "pfeiffer"}
    made = [make_adapter(base, kind, name=name, labels=None) for name, kind in kinds.items()]
    return [with_random_weights(one, seed) for seed, one in enumerate(made)]


def prepared(base: TorchBase, fused: Adapter) -> AdaptedModel:
    """Return the attached fusion with a new head, which is trained, too."""
    whole = with_head(fused, make_head(width=sites_of(base).width, labels=LABELS))
    learned = [*own_tensors(fused), *(name for name in whole.weights if name.startswith("head."))]
    return attach(base, whole, learned=learned)


def temperature(model: AdaptedModel) -> float:
    """Return the temperature at the sites where several members act."""
    adapter = model.to_adapter()
    (found,) = {temperature_of(adapter.graphs[adapter.placements[f"layers.{layer}.ffn"].graph]) for layer in range(2)}
    return found


@pytest.mark.parametrize("make", [adapter_fusion, weighted_fusion])
def test_members_stay_bit_for_bit_and_the_rest_learns(base, data, members: list[Adapter], make) -> None:
    fused = make(*members, name="fused")
    model = prepared(base, fused)
    before = model.to_adapter().weights
    result = train(model, data, replace(QUICK, epochs=6, value_penalty=0.01))
    after = model.to_adapter().weights
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    idle = {name for name in own_tensors(fused) if name.endswith("fusion.key.bias")}  # shifts all scores equally
    assert changed - idle == {*own_tensors(fused), "head.classifier.weight", "head.classifier.bias"} - idle
    assert set(model.learned()) == changed | idle
    assert result.history[-1].training_loss < result.history[0].training_loss


def test_the_temperature_falls_to_one_and_is_that_of_the_best_epoch(base, data, members: list[Adapter]) -> None:
    model = prepared(base, adapter_fusion(*members, name="fused", options=FusionOptions(temperature=50.0)))
    steps = 4  # of 64 rows in batches of 16, less those for validation
    result = train(model, data, replace(QUICK, fusion_temperature_decay=0.01))
    done = result.best_epoch * result.steps // len(result.history)
    assert done >= steps - 1
    assert temperature(model) == pytest.approx(50 - 0.5 * done)
    train(model, data, replace(QUICK, fusion_temperature_decay=0.5))
    assert temperature(model) == 1.0
    model.cool(0.0)
    assert temperature(model) == 50.0


def test_the_output_follows_the_temperature(base, members: list[Adapter]) -> None:
    model = prepared(base, adapter_fusion(*members, name="fused", options=FusionOptions(temperature=50.0)))
    with torch.no_grad():
        for name, tensor in model.learned().items():
            if ".fusion." in name:
                tensor.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": torch.arange(4, 12).reshape(2, 4), "attention_mask": torch.ones(2, 4, dtype=torch.int64)}
    with torch.inference_mode():
        warm = model.hidden(**inputs)
        model.cool(1.0)
        cool = model.hidden(**inputs)
        again = attach(base, model.to_adapter()).hidden(**inputs)
    assert (warm - cool).abs().max() > 0.01
    torch.testing.assert_close(again, cool, rtol=0, atol=0)


def test_the_penalty_draws_values_to_the_identity(base, data, members: list[Adapter]) -> None:
    def distance(penalty: float) -> float:
        fused = adapter_fusion(*members, name="fused", options=FusionOptions(first_value="normal"))
        model = prepared(base, fused)
        train(model, data, replace(QUICK, epochs=3, learning_rate=0.05, weight_decay=0.0, value_penalty=penalty))
        values = [tensor for name, tensor in model.learned().items() if name.endswith("value.weight")]
        return sum(float((torch.eye(len(value)) - value).detach().square().sum()) for value in values)

    assert distance(1.0) < 0.8 * distance(0.0)


def test_other_trainable_tensors_make_another_run(base, data, members: list[Adapter]) -> None:
    model = prepared(base, weighted_fusion(*members, name="fused"))
    other = attach(base, model.to_adapter())
    assert run_identity(model, data, QUICK) != run_identity(other, data, QUICK)


def test_attach_refuses_adapters_without_trainable_tensors(base, data, members: list[Adapter]) -> None:
    stacked = with_head(stack(*members, name="s"), make_head(width=sites_of(base).width, labels=LABELS))
    with pytest.raises(TrainingError, match="no tensor of the adapter"):
        train(attach(base, stacked, learned=()), data, QUICK)
    with pytest.raises(AdapterError, match="does not have the tensors to train; found other"):
        attach(base, stacked, learned=["other"])
