"""Callback for the `Trainer` of transformers: saved files and rejected settings."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import traced_once
from toolchain import skip_or_fail
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import BertConfig, BertModel, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

import adapter_export as ae
from adapter_export.errors import BaseMismatchError, OutputExistsError, TrainingError, UsageError
from adapter_export.torch_backend.attach import AttachedAdapter

if importlib.util.find_spec("accelerate") is None:
    skip_or_fail("accelerate is missing, which the Trainer needs: run `make setup`, or `pip install accelerate`")
from transformers import Trainer

LABELS = ["bad", "good"]
SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def model() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(**SIZES, initializer_range=0.2, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    return BertModel(config, add_pooling_layer=False)


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    with traced_once():
        yield


@pytest.fixture(scope="module", autouse=True)
def _freeze() -> None:
    """Freeze objects of earlier tests for the garbage collector: each call of `train` walks all others."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def adapter(model: BertModel) -> Iterator[AttachedAdapter]:
    with ae.attach(model, kind="pfeiffer", bottleneck=2, labels=LABELS) as attached:
        yield attached


def rows(seed: int, count: int = 16) -> list[dict[str, Any]]:
    ids = np.random.default_rng(seed).integers(0, 20, (count, 5))
    return [{"input_ids": row, "attention_mask": row * 0 + 1, "labels": int(row[0] % 2)} for row in ids]


def loss(outputs: Any, labels: Tensor, **_: object) -> Tensor:
    return nn.functional.cross_entropy(outputs.logits, labels)


def trainer(model: nn.Module, folder: Path, callbacks: list[TrainerCallback], **options: Any) -> Trainer:
    """Return a trainer whose epoch has 2 steps and ends with a validation and a checkpoint."""
    settings: dict[str, Any] = {"num_train_epochs": 4, "learning_rate": 0.2, "report_to": "none", "disable_tqdm": True}
    settings |= {"remove_unused_columns": False, "label_names": ["labels"], "eval_strategy": "epoch"}
    settings |= {"save_strategy": "epoch", "load_best_model_at_end": True, "logging_steps": 1}
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True, **options}  # the first one is worst
    return Trainer(
        model,
        TrainingArguments(str(folder), **settings),
        train_dataset=rows(0),
        eval_dataset=rows(1),
        compute_loss_func=loss,
        callbacks=callbacks,
    )


def run(made: Trainer, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the libraries, about each other
        made.train(**options)


class Interrupt(TrainerCallback):
    """Stops a run like a kill after step 5: the last checkpoint is that of step 4."""

    def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_best_checkpoint_is_saved_and_runs_resume_equally(
    model: BertModel, adapter: AttachedAdapter, tmp_path: Path
) -> None:
    (tmp_path / "train.tsv").write_text("what the rows were made of")
    first = {name: tensor.detach().clone() for name, tensor in adapter.tensors().items()}
    facts: Any = {"data": {"training": tmp_path / "train.tsv"}}
    saving = ae.trainer_callback(adapter, tmp_path / "a", bundle=tmp_path / "bundle", **facts)
    whole = trainer(model, tmp_path / "whole", [saving])
    run(whole)

    best = Path(str(whole.state.best_model_checkpoint))
    saved, last = ae.load_adapter(tmp_path / "a"), ae.load_adapter(tmp_path / "whole/checkpoint-8/adapter_export")
    kept = ae.load_adapter(best / "adapter_export").weights
    assert best.name != "checkpoint-8", "otherwise the last checkpoint would be the best one"
    assert all(np.array_equal(saved.weights[name], kept[name]) for name in kept)
    assert any(not np.array_equal(saved.weights[name], last.weights[name]) for name in kept)
    record = saved.training
    assert (record["task"], record["steps"], record["kept_step"]) == ("single_label", 8, int(best.name[-1]))
    assert record["validation"]["loss"] == whole.state.best_metric
    assert [one["step"] for one in record["history"] if "validation" in one] == [2, 4, 6, 8]
    assert [one["step"] for one in record["history"] if "training_loss" in one] == [*range(1, 9)]
    assert (record["data"]["training_rows"], record["data"]["validation_rows"]) == (16, 16)
    digest = hashlib.sha256(b"what the rows were made of").hexdigest()
    assert record["data"]["training"] == {"file": "train.tsv", "sha256": digest}
    assert record["settings"]["learning_rate"] == 0.2

    given = {name: torch.tensor(np.stack([row[name] for row in rows(2)])) for name in ("input_ids", "attention_mask")}
    given["token_type_ids"] = given["input_ids"] * 0
    with torch.no_grad():
        expected = model.eval()(**given).logits.numpy()
    found = ae.open_bundle(tmp_path / "bundle").session().run({name: one.numpy() for name, one in given.items()}, "a")
    np.testing.assert_allclose(found["logits"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    with torch.no_grad():
        for name, tensor in adapter.tensors().items():
            tensor.copy_(first[name])
    with pytest.raises(KeyboardInterrupt):
        run(trainer(model, tmp_path / "runs", [ae.trainer_callback(adapter, tmp_path / "b", **facts), Interrupt()]))
    assert not (tmp_path / "b").exists()
    saving = ae.trainer_callback(adapter, tmp_path / "b", **facts)
    run(trainer(model, tmp_path / "runs", [saving]), resume_from_checkpoint=True)
    resumed = ae.load_adapter(tmp_path / "b")
    assert all(np.array_equal(saved.weights[name], resumed.weights[name]) for name in kept)
    assert resumed.training["history"] == record["history"]
    assert resumed.training["kept_step"] == record["kept_step"]


def test_last_adapter_is_kept_if_none_is_selected(model: BertModel, adapter: AttachedAdapter, tmp_path: Path) -> None:
    saving = ae.trainer_callback(adapter, tmp_path / "a", name="other")
    options = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "max_steps": 1}
    run(trainer(model, tmp_path / "runs", [saving], **options))
    saved = ae.load_adapter(tmp_path / "a")
    assert saved.name == "other"
    assert all(np.array_equal(saved.weights[name], one.detach()) for name, one in adapter.tensors().items())
    assert (saved.training["kept_step"], saved.training["validation"]) == (1, {})


def test_a_base_that_is_attached_is_the_model(model: BertModel, tmp_path: Path) -> None:
    ids = torch.ones(1, 3, dtype=torch.int64)
    base = ae.capture(model, tmp_path / "model.pt", example_inputs={"input_ids": ids, "attention_mask": ids})
    adapted = ae.attach(base, kind="pfeiffer", bottleneck=2, labels=LABELS)
    before = {name: one.detach().clone() for name, one in adapted.tensors().items()}
    options = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "max_steps": 1}
    made = trainer(adapted, tmp_path / "runs", [ae.trainer_callback(adapted, tmp_path / "a")], **options)
    made.compute_loss_func = lambda outputs, labels, **_: nn.functional.cross_entropy(outputs["logits"], labels)
    run(made)
    saved = ae.load_adapter(tmp_path / "a")
    assert any(not np.array_equal(saved.weights[name], one) for name, one in before.items())
    assert saved.base == base.fingerprint


def test_model_output_can_be_flattened_and_rebuilt(model: BertModel, adapter: AttachedAdapter) -> None:
    """`DistributedDataParallel` does this."""
    output = model(**{name: torch.ones(1, 3, dtype=torch.int64) for name in ("input_ids", "attention_mask")})
    again = pytree.tree_unflatten(*pytree.tree_flatten(output))
    assert isinstance(again, BaseModelOutputWithPoolingAndCrossAttentions)
    assert torch.equal(again.logits, output.logits)
    assert torch.equal(again[0], output.last_hidden_state)


def test_a_model_without_the_adapter_is_refused(model: BertModel, adapter: AttachedAdapter, tmp_path: Path) -> None:
    saving = ae.trainer_callback(adapter, tmp_path / "a")
    adapter.detach()
    with pytest.raises(UsageError, match="the adapter is not attached to the model being trained"):
        run(trainer(model, tmp_path / "runs", [saving]))


def test_weights_that_would_be_trained_are_named(model: BertModel, adapter: AttachedAdapter, tmp_path: Path) -> None:
    model.embeddings.word_embeddings.weight.requires_grad_(True)
    with pytest.raises(TrainingError, match=r"but not saved; found `embeddings.word_embeddings.weight`"):
        run(trainer(model, tmp_path / "runs", [ae.trainer_callback(adapter, tmp_path / "a")]))


class Break(TrainerCallback):
    """Changes a weight of the base."""

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            kwargs["model"].encoder.layer[0].output.dense.bias.add_(1)


def test_weights_that_changed_are_named(model: BertModel, adapter: AttachedAdapter, tmp_path: Path) -> None:
    made = trainer(model, tmp_path / "runs", [ae.trainer_callback(adapter, tmp_path / "a"), Break()])
    with pytest.raises(TrainingError, match=r"have changed.*; found `encoder.layer.0.output.dense.bias`; expected"):
        run(made)
    assert not (tmp_path / "a").exists()


class Lose(TrainerCallback):
    """Deletes the best checkpoint during training; the `Trainer` then keeps the last weights with a warning."""

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 8:
            (Path(str(state.best_model_checkpoint)) / "model.safetensors").unlink()


def test_a_best_checkpoint_that_was_not_loaded_is_seen(
    model: BertModel, adapter: AttachedAdapter, tmp_path: Path
) -> None:
    made = trainer(model, tmp_path / "runs", [ae.trainer_callback(adapter, tmp_path / "a"), Lose()])
    with pytest.raises(TrainingError, match="the adapter does not match the checkpoint that is kept"):
        run(made)


def test_unbuildable_settings_are_refused_before_training(
    model: BertModel, adapter: AttachedAdapter, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputExistsError):
        ae.trainer_callback(adapter, tmp_path / "taken")
    with pytest.raises(OutputExistsError):
        ae.trainer_callback(adapter, tmp_path / "a", bundle=tmp_path / "taken")
    ids = torch.ones(1, 3, dtype=torch.int64)
    torch.manual_seed(1)
    other = BertModel(BertConfig(**SIZES), add_pooling_layer=False)
    base = ae.capture(other, tmp_path / "other.pt", example_inputs={"input_ids": ids})
    with pytest.raises(BaseMismatchError):
        ae.trainer_callback(adapter, tmp_path / "a", bundle=tmp_path / "bundle", base=base)
