"""The loop's use of accelerate, and clear errors for what stops it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.utils.class_weight import compute_class_weight
from small_task import LABELS, examples, make_adapter, prepared, reviews, sites_of

from adapter_export.bases.kinds import make_kind
from adapter_export.errors import TrainingError, UsageError
from adapter_export.graph.heads import make_head
from adapter_export.graph.tasks import Task
from adapter_export.reporting import Reporter
from adapter_export.torch_backend.attach import attach
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.training.loop import memory
from adapter_export.training.loop.cache import HiddenCache
from adapter_export.training.loop.checkpoint import CHECKPOINT_FILE
from adapter_export.training.loop.data import Call, Rows, TextExamples, TrainingData, balanced
from adapter_export.training.loop.devices import Engine
from adapter_export.training.loop.init_adapter import init_adapter, with_head
from adapter_export.training.loop.settings import LoopSpec, Machine
from adapter_export.training.loop.train_loop import train
from adapter_export.training.objectives.objective import class_loss, label_loss

QUICK = LoopSpec(epochs=2, batch_size=8, learning_rate=0.01)
GPU = torch.accelerator.is_available()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, '`device="tpu"`: the device does not exist; expected `cpu`'),
        pytest.param(
            {"device": "cuda:1"},
            "the device does not exist; expected `cpu`",
            marks=pytest.mark.skipif(GPU, reason="there is a GPU"),
        ),
        ({"device": "cpu", "precision": "fp16"}, 'float16 training needs a GPU.* Pass `precision="bf16"`'),
        ({"log_to": ("paper",)}, "accelerate does not support this tracker; found `paper`; expected .*`tensorboard`"),
        ({"log_to": ("swanlab",)}, "the tracker `swanlab` is not installed. Run `pip install swanlab`"),
    ],
)
def test_missing_devices_are_named(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Engine(Machine(**arguments))


def test_no_device_is_left_behind_when_the_model_moves(base) -> None:
    """Tested without a GPU: on torch's device `meta`, where a single tensor on the CPU would be an error."""
    model = prepared(base).on(torch.device("meta"))
    inputs = {record.name: torch.ones(2, 5, dtype=torch.int64) for record in base.inputs}
    assert model.result(model.placed(inputs)).device.type == "meta"
    assert prepared(base).result(inputs).device.type == "cpu"


def test_parts_of_a_step_give_what_the_whole_gives(base, data) -> None:
    found = []
    for parts in (1, 3):
        model = prepared(base)
        result = train(model, data, replace(QUICK, gradient_accumulation=parts))
        found.append((result, model.to_adapter().weights))
    (one, whole), (other, cut) = found
    assert one.losses == pytest.approx(other.losses, rel=1e-4)
    for name, tensor in whole.items():
        np.testing.assert_allclose(cut[name], tensor, rtol=1e-3, atol=1e-5)


def test_parts_of_a_step_are_compared_with_each_other(base, data) -> None:
    head = make_head(Task("embedding"), width=make_adapter(base).head.widths["d"])
    rows, found = replace(data.training, problem="embedding"), []
    for parts in (1, 3):
        model = attach(base, with_head(make_adapter(base), head))
        result = train(model, TrainingData(rows, rows), replace(QUICK, gradient_accumulation=parts))
        found.append((result.losses, model.to_adapter().weights))
    (losses, whole), (others, cut) = found
    assert losses == pytest.approx(others, rel=1e-4)
    for name, tensor in whole.items():
        np.testing.assert_allclose(cut[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("problem", ["single_label", "embedding"])
def test_wide_outputs_are_computed_in_several_passes(base, data, monkeypatch, problem: str) -> None:
    rows = replace(data.training, problem=problem)
    head = make_head(Task("embedding"), width=make_adapter(base).head.widths["d"])
    tokens = 2 * int(rows.lengths.max())
    runs = []
    for bound in (memory.MOST_OUTPUTS, tokens * prepared(base).widest):
        model = prepared(base) if problem == "single_label" else attach(base, with_head(make_adapter(base), head))
        sizes = list[int]()
        with monkeypatch.context() as patch:
            patch.setattr(memory, "MOST_OUTPUTS", bound)
            patch.setattr(model, "placed", partial(_placed, model.placed, sizes))
            run = train(model, TrainingData(rows, rows), replace(QUICK, cache_mb=0))
        runs.append((max(sizes), run.losses, run.best.validation.loss))
    (most, losses, score), (bounded, others, other_score) = runs
    assert bounded <= tokens < most
    assert losses == pytest.approx(others, rel=1e-4)
    assert score == pytest.approx(other_score, rel=1e-4)


def _placed(placed: Callable[..., Any], sizes: list[int], inputs: Mapping[str, torch.Tensor]) -> Any:
    """Record the number of tokens of a call."""
    sizes.append(inputs["input_ids"].numel())
    return placed(inputs)


def test_half_precision_learns_and_leaves_the_adapter_in_float32(base, data) -> None:
    model = prepared(base)
    full = train(prepared(base), data, QUICK)
    half = train(model, data, replace(QUICK, precision="bf16"))
    assert half.losses != full.losses
    assert half.losses == pytest.approx(full.losses, abs=0.02)
    assert {tensor.dtype for tensor in model.tensors().values()} == {torch.float32}


def test_training_ignores_and_keeps_an_existing_accelerator(base, data) -> None:
    """One in the middle of accumulation would skip steps, and its precision would be used."""
    alone = train(prepared(base), data, replace(QUICK, precision="bf16"))
    theirs = Accelerator(cpu=True, gradient_accumulation_steps=4)
    with theirs.accumulate():
        assert not theirs.sync_gradients
        beside = train(prepared(base), data, replace(QUICK, precision="bf16"))
        assert (theirs.mixed_precision, theirs.gradient_accumulation_steps, theirs.sync_gradients) == ("no", 4, False)
    assert beside.losses == alone.losses


class TestTheMetricThatDecides:
    @pytest.mark.parametrize("metric", ["loss", "macro_f1"])
    def test_best_epoch_follows_the_selected_metric(self, base, data, metric: str) -> None:
        model = prepared(base, dropout=0.5)
        settings = LoopSpec(epochs=5, batch_size=8, learning_rate=0.05, patience=5, metric=metric)
        result = train(model, data, settings)
        scores = [record.validation.document()[metric] for record in result.history]
        assert scores[result.best_epoch - 1] == (min(scores) if metric == "loss" else max(scores))

    def test_unknown_metrics_are_refused(self, base, data) -> None:
        with pytest.raises(UsageError, match="lacks this metric; found `f1`; expected `loss`, `accuracy`, `macro_f1`"):
            train(prepared(base), data, replace(QUICK, metric="f1"))


class TestClassWeights:
    def test_weighted_losses_match_torch(self) -> None:
        logits, classes, weights = torch.randn(6, 2), torch.tensor([0, 0, 0, 1, 0, 1]), torch.tensor([0.5, 3.0])
        total, weight = class_loss(logits, classes, weights)
        torch.testing.assert_close(total / weight, torch.nn.functional.cross_entropy(logits, classes, weights))
        truths = classes[:, None].float().expand(-1, 2)
        total, weight = label_loss(logits, truths, weights)
        wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, truths, pos_weight=weights)
        torch.testing.assert_close(total / weight, wanted)

    def test_balanced_is_that_of_scikit_learn(self, base) -> None:
        rows = examples(base, [row for row in reviews(60) if row[1] == "good" or len(row[0]) < 12])
        wanted = compute_class_weight("balanced", classes=np.arange(2), y=np.asarray(rows.answers))
        found = balanced(rows, LABELS)
        assert list(found) == list(LABELS)
        assert list(found.values()) == pytest.approx(list(wanted))
        assert found["bad"] != found["good"]

    def test_class_weights_of_unknown_labels_are_refused(self, base, data) -> None:
        with pytest.raises(UsageError, match="the data do not have these labels; found `fine`; expected `bad`, `good`"):
            train(prepared(base), data, replace(QUICK, class_weights={"fine": 2.0}))


class Overflow(Reporter):
    """Makes a tensor so large, after some steps, that its results are infinite."""

    def __init__(self, tensor: torch.Tensor, step: int) -> None:
        self.tensor, self.left = tensor, step

    def measure(self, values: Mapping[str, float], step: int) -> None:
        if "training/loss" not in values:
            return
        self.left -= 1
        if not self.left:
            self.tensor.data.fill_(3e38)


def test_the_layer_where_numbers_end_is_named_and_the_best_epoch_kept(base, data, tmp_path: Path) -> None:
    model = prepared(base)
    overflow = Overflow(model.tensors()["layers.1.attention.up.weight"], 9)
    with pytest.raises(
        TrainingError, match=r"step 10, epoch 2, between `layers.1.attention` and `layers.1.ffn`: .* is kept in"
    ):
        train(model, data, QUICK, reporter=overflow, checkpoints=tmp_path)
    assert (tmp_path / CHECKPOINT_FILE).exists()


def test_training_out_of_memory_names_the_option_to_lower(ended_runs: Path) -> None:
    """Run in a separate process: memory freed by other tests would count, and a worker without memory may crash."""
    said = (ended_runs / "memory.txt").read_text()
    assert re.search(r"the first step: out of memory; found 30,000 rows .*`gradient_accumulation`", said), said


@pytest.mark.parametrize("change", ["learning_rate", "labels"])
def test_resuming_with_other_settings_is_refused(base, data, tmp_path: Path, change: str) -> None:
    train(prepared(base), data, replace(QUICK, epochs=1), checkpoints=tmp_path)
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()
    settings, model = replace(QUICK, epochs=1), prepared(base)
    message = r"found `learning_rate` 0.01; expected 0.02"
    if change == "learning_rate":
        settings = replace(settings, learning_rate=0.02)
    else:
        model = attach(base, make_adapter(base, labels=("bad", "good", "new")))
        message = r'found `labels` \["bad", "good"\]; expected \["bad", "good", "new"\]'
    with pytest.raises(TrainingError, match=message):
        train(model, data, settings, checkpoints=tmp_path)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before


def test_a_tracker_gets_every_step_and_every_epoch(base, data, tmp_path: Path) -> None:
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    with Engine(Machine("cpu", log_to=("tensorboard",)), tmp_path).open() as accelerator:
        result = train(prepared(base), data, QUICK, accelerator=accelerator)
    events = accumulator.EventAccumulator(str(tmp_path / "adapter-export")).Reload()
    losses = events.Scalars("training/loss")
    assert [event.step for event in losses] == list(range(1, result.steps + 1))
    assert [event.value for event in losses] == pytest.approx(result.losses, rel=1e-6)
    accuracies = [record.validation.metrics["accuracy"] for record in result.history]
    assert [event.value for event in events.Scalars("validation/accuracy")] == pytest.approx(accuracies)
    assert {"training/learning_rate", "training/gradient_norm", "training/rows_per_second"} <= set(
        events.Tags()["scalars"]
    )


class Unmasked(TextExamples):
    """Texts whose padding is not masked, so that the base reads it."""

    def calls(self, rows: Rows, *, pads: bool) -> Iterator[Call]:
        for call in super().calls(rows, pads=pads):
            mask = torch.ones_like(call.inputs["attention_mask"])
            yield replace(call, inputs={**call.inputs, "attention_mask": mask})


class TestTheCache:
    """Cache of activations below the first adapter."""

    def test_cached_epochs_equal_uncached_epochs(self, base, data) -> None:
        one, other = (train(prepared(base), data, replace(QUICK, cache_mb=size)) for size in (0, 64))
        assert one.losses == pytest.approx(other.losses, rel=1e-5)
        assert one.best.validation.metrics == other.best.validation.metrics

    def test_cache_contains_only_inputs_of_the_first_adapter(self, base, data) -> None:
        low, high = (self.made(base, data, leave_out) for leave_out in ((), (0,)))
        tokens = int(data.training.lengths.sum())
        assert low is not None
        assert high is not None
        assert (low.bytes, high.bytes) == ((tokens + 1) * 2 * 16 * 4,) * 2  # the stream, and the sublayer's summand
        products = [sum("linear" in node.name for node in each.above.graph.nodes) for each in (low, high)]
        assert products == [9, 3]  # of 13, with the pooler

    def test_cache_is_absent_if_too_large_or_padding_counts(self, base, data) -> None:
        assert HiddenCache.of(prepared(base), data.training, 8, 1000) is None
        facts = {field.name: getattr(data.training, field.name) for field in fields(data.training)}
        assert HiddenCache.of(prepared(base), Unmasked(**facts), 8, 2**20) is None

    @staticmethod
    def made(base: TorchBase, data: TrainingData, leave_out: tuple[int, ...], **options: bool) -> HiddenCache | None:
        kind = make_kind("houlsby", {"bottleneck": 4, "leave_out": leave_out, **options})
        sites = sites_of(base)
        head = make_head(width=sites.width, labels=LABELS)
        adapter = init_adapter(kind, sites, name="a", base=base.fingerprint, head=head)
        return HiddenCache.of(attach(base, adapter, sites=sites), data.training, 8, 2**20)
