"""Training: the right tensors change, the others do not, and an interruption has no effect."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ended_training
import numpy as np
import pytest
import torch
from heard import Interrupt
from small_task import make_adapter, prepared, review_data, with_random_weights
from torch import Tensor

from adapter_export.errors import TrainingError
from adapter_export.reporting import Reporter
from adapter_export.torch_backend.attach import attach
from adapter_export.torch_backend.base.torch_base import TorchBase, fingerprint
from adapter_export.training.loop.checkpoint import CHECKPOINT_FILE
from adapter_export.training.loop.data import TrainingData
from adapter_export.training.loop.settings import LoopSpec
from adapter_export.training.loop.train_loop import evaluate, train
from adapter_export.training.objectives.objective import Scores

QUICK = LoopSpec(epochs=2, batch_size=8, learning_rate=0.01)


class Witness(Reporter):
    """Records its messages."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.counts: list[tuple[int, int]] = []
        self.losses: list[float] = []
        self.epochs: list[dict[str, float]] = []

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:
        self.labels.append(label)
        if total is not None:
            self.counts.append((done, total))

    def measure(self, values: Mapping[str, float], step: int) -> None:
        if "training/epoch" in values:
            self.epochs.append(dict(values))
            return
        self.losses.append(values["training/loss"])


def test_training_learns_the_task_and_leaves_the_base_unchanged(base) -> None:
    before = fingerprint(base.program)
    model = attach(base, make_adapter(base, bottleneck=8))
    settings = LoopSpec(epochs=15, batch_size=16, learning_rate=0.03, patience=15)
    result = train(model, review_data(base, 300), settings)
    assert result.best.validation.metrics["accuracy"] >= 0.9
    assert result.history[-1].training_loss < 0.3 * result.history[0].training_loss
    assert fingerprint(base.program) == before == base.fingerprint
    wanted = {id(tensor) for tensor in model.tensors().values()}
    assert all(tensor.grad is None for tensor in model.parameters() if id(tensor) not in wanted)


def test_reporter_receives_every_step_and_epoch(base, data) -> None:
    witness = Witness()
    result = train(prepared(base), data, QUICK, reporter=witness)
    steps = math.ceil(60 / 8) * 2
    assert witness.counts == [(done, steps) for done in range(steps + 1)]
    assert len(witness.losses) == result.steps == steps
    assert witness.losses[0] == pytest.approx(math.log(2), abs=0.1)
    validation = [
        {name.removeprefix("validation/"): value for name, value in epoch.items() if name.startswith("validation/")}
        for epoch in witness.epochs
    ]
    assert validation == [record.validation.document() for record in result.history]
    assert [epoch["training/epoch_loss"] for epoch in witness.epochs] == [one.training_loss for one in result.history]
    assert [epoch["training/epoch"] for epoch in witness.epochs] == [1, 2]
    assert [record.epoch for record in result.history] == [1, 2]


def test_the_model_ends_with_the_best_epoch(base, data) -> None:
    model = prepared(base, dropout=0.5)
    result = train(model, data, LoopSpec(epochs=6, batch_size=8, learning_rate=0.05, patience=6))
    accuracies = [record.validation.metrics["accuracy"] for record in result.history]
    assert result.best.validation.metrics["accuracy"] == max(accuracies)
    scores = evaluate(model, data.validation, QUICK)
    assert scores.document() == pytest.approx(result.best.validation.document(), rel=1e-5)
    assert not model.training


def test_equal_seeds_give_equal_bits(base, data) -> None:
    weights = []
    for seed in (0, 0, 1):
        model = prepared(base, dropout=0.2)
        train(model, data, replace(QUICK, seed=seed))
        weights.append(model.to_adapter().weights)
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not np.array_equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_training_leaves_the_generator_of_torch_unchanged(base, data) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(prepared(base, dropout=0.2), data, replace(QUICK, epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_training_stops_when_validation_does_not_improve(base, data) -> None:
    settings = LoopSpec(epochs=20, batch_size=8, learning_rate=1e-9, patience=2)
    still = replace(data, validation=data.validation.only(np.arange(4)))
    result = train(prepared(base), still, settings)
    assert len(result.history) < 20
    assert len(result.history) == result.best_epoch + 2


def test_a_run_that_was_killed_ends_with_the_same_bits(ended_runs: Path, tmp_path: Path) -> None:
    """Killed between two checkpoints, then after the last step of an epoch, before its validation."""
    shutil.copytree(ended_runs / "killed", tmp_path / "killed")
    threads = torch.get_num_threads()
    try:
        broken, whole = (ended_training.run(ended_runs / "model.pt", tmp_path / name) for name in ("killed", "whole"))
    finally:
        torch.set_num_threads(threads)
    assert whole.keys() == broken.keys()
    assert all(np.array_equal(whole[name], broken[name]) for name in whole)


def interrupted(base: TorchBase, data: TrainingData, folder: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        train(prepared(base), data, replace(QUICK, checkpoint_steps=2), reporter=Interrupt(5), checkpoints=folder)
    return folder / CHECKPOINT_FILE


def test_resumed_training_reports_its_first_step(base, data, tmp_path: Path) -> None:
    interrupted(base, data, tmp_path)
    witness = Witness()
    settings = replace(QUICK, checkpoint_steps=2)
    result = train(prepared(base), data, settings, reporter=witness, checkpoints=tmp_path)
    assert result.resumed_at == 4
    assert witness.labels[0] == "resuming the interrupted run after step 4 of 16"
    assert witness.counts[0] == (4, 16)
    assert len(witness.losses) == 12


def test_a_finished_run_is_not_run_again(base, data, tmp_path: Path) -> None:
    models = [prepared(base), prepared(base)]
    first, again = (train(model, data, QUICK, checkpoints=tmp_path) for model in models)
    assert again.resumed_at == first.steps == again.steps
    assert again.history == first.history
    one, other = (model.to_adapter().weights for model in models)
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("change", ["settings", "data", "weights"])
def test_another_run_does_not_take_up_the_checkpoint(base, data, tmp_path: Path, change: str) -> None:
    path = interrupted(base, data, tmp_path)
    before = path.read_bytes()
    settings, model = replace(QUICK, checkpoint_steps=2), prepared(base)
    if change == "settings":
        settings = replace(settings, learning_rate=0.02)
    if change == "data":
        data = replace(data, training=data.training.only(np.arange(59)))
    if change == "weights":
        model = attach(base, make_adapter(base, seed=1))
    with pytest.raises(TrainingError, match="an interrupted run with other data, settings or weights"):
        train(model, data, settings, checkpoints=tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_named(base, data, tmp_path: Path, damage: str) -> None:
    path = interrupted(base, data, tmp_path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-10], "flipped": b"\xff" + whole[1:], "empty": b""}[damage])
    with pytest.raises(TrainingError, match=r"the checkpoint is damaged.*`restart=True`"):
        train(prepared(base), data, replace(QUICK, checkpoint_steps=2), checkpoints=tmp_path)


class Sabotage(Reporter):
    """Writes a NaN into the model after a number of steps."""

    def __init__(self, tensor: Tensor, step: int) -> None:
        self.tensor = tensor
        self.left = step

    def measure(self, values: Mapping[str, float], step: int) -> None:
        if "training/loss" not in values:
            return
        self.left -= 1
        if not self.left:
            self.tensor.data[0] = math.nan


def test_a_loss_that_is_not_a_number_stops_the_run(base, data) -> None:
    model = prepared(base)
    sabotage = Sabotage(model.tensors()["head.classifier.bias"], 9)
    with pytest.raises(
        TrainingError,
        match=r"step 10, epoch 2, tensor `head.classifier.bias`: the loss is not finite; found nan.*`learning_rate",
    ):
        train(model, data, QUICK, reporter=sabotage)


def test_training_requires_a_head(base, data) -> None:
    with pytest.raises(TrainingError, match="has no head"):
        train(attach(base, make_adapter(base, labels=None)), data)


def test_adapter_learns_in_a_loop_written_by_the_user(base, data) -> None:
    """Run the README's example for users with an existing loop."""
    model = attach(base, make_adapter(base))
    optimizer = torch.optim.AdamW(model.tensors().values(), lr=0.02)
    (call,) = data.training.calls(np.arange(20), pads=True)
    batch, classes = call.inputs, torch.from_numpy(data.training.answers[:20])
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(**batch)["logits"], classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_scores_do_not_depend_on_the_batches(base, data) -> None:
    model = attach(base, with_random_weights(make_adapter(base)))
    one, other = (evaluate(model, data.validation, replace(QUICK, batch_size=size)) for size in (1, 30))
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    assert one.metrics == other.metrics


def scores(loss: float, accuracy: float, macro_f1: float) -> Scores:
    return Scores(loss, {"accuracy": accuracy, "macro_f1": macro_f1}, "accuracy")


def test_better_means_more_accurate_and_then_less_loss() -> None:
    assert scores(1.0, 0.9, 0).is_better_than(scores(0.5, 0.8, 0))
    assert scores(0.4, 0.9, 0).is_better_than(scores(0.5, 0.9, 0))
    assert not scores(0.5, 0.9, 0).is_better_than(scores(0.5, 0.9, 1))
    assert Scores(0.4, {"pearson": 0.1}).is_better_than(Scores(0.5, {"pearson": 0.9}))
