"""Attached adapter in the `Trainer` of transformers: saved in each checkpoint, and at the end with its record."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from adapter_export.errors import TrainingError, UsageError
from adapter_export.format.adapter_files import read_adapter
from adapter_export.tables import Described
from adapter_export.torch_backend.attach import AttachedAdapter
from adapter_export.torch_backend.hooks import HookedAdapter
from adapter_export.version import __version__
from adapter_export.words import argument

CHECKPOINT_FOLDER = "adapter_export"
"""Folder of the adapter in a checkpoint of the `Trainer`."""

_SETTINGS = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "seed",
    "bf16",
    "fp16",
    "load_best_model_at_end",
    "metric_for_best_model",
)
"""Fields of `TrainingArguments` in the training record; the others are paths, trackers and hardware."""

_SPEED = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
_NAMED = 5


class AdapterCallback(Described, TrainerCallback):  # type: ignore[misc]  # the library's types are not read
    """Saves an attached adapter in each checkpoint, and to `output` at the end of the training.

    With `load_best_model_at_end`, that is the adapter of the best checkpoint, after comparing it with the saved one.
    With several processes, only the first one writes. `build` is called with the folder after it is written.
    """

    def __init__(
        self,
        adapter: AttachedAdapter,
        output: Path,
        *,
        name: str,
        sources: Mapping[str, Any],
        force: bool,
        build: Callable[[Path], object] | None = None,
    ) -> None:
        self._adapter, self._output, self._name, self._force = adapter, output, name, force
        self._sources, self._build = sources, build
        self._datasets: dict[str, Any] = {}

    def described(self) -> Mapping[str, object]:
        """Return the facts for `repr` and notebooks."""
        return {"name": self._name, "output": self._output, "builds_a_bundle": self._build is not None}

    def on_train_begin(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
        """Reject a model without the adapter, and a model in which other weights are trained, too.

        Raises:
            UsageError: the adapter does not act in the model, or not in all copies of it.
            TrainingError: weights of the base are not frozen, or a resumed run lacks the adapter of its checkpoint.
        """
        model: nn.Module = kwargs["model"]
        if not any(module is self._adapter for module in model.modules()):
            raise UsageError(
                "the adapter is not attached to the model being trained",
                where=f"`{type(model).__name__}`",
                fix="train inside the block of `attach`, and pass the `Trainer` the model that the adapter is attached "
                "to; for a base, the object returned by `attach` is the model",
            )
        if args.n_gpu > 1 and isinstance(self._adapter, HookedAdapter):
            raise UsageError(
                "the `Trainer` would copy the model to several devices in one process, and hooks act in one copy only",
                found=f"{args.n_gpu} devices",
                fix="start one process for each device with `torchrun`, or attach to a base instead of a module",
            )
        own = {id(tensor) for tensor in self._adapter.tensors().values()}
        free = [f"`{name}`" for name, one in model.named_parameters() if one.requires_grad and id(one) not in own]
        if free:
            raise TrainingError(
                "weights other than the adapter's would be trained, but not saved",
                where=f"`{type(model).__name__}`",
                found=", ".join(free[:_NAMED]) + (f" and {len(free) - _NAMED} more" * (len(free) > _NAMED)),
                expected="a frozen base: only the adapter and its head are trained",
                fix="do not call `requires_grad_` on the model after `attach`; add the head to the adapter: "
                + argument("head"),
            )
        for part, loader in (("training", "train_dataloader"), ("validation", "eval_dataloader")):
            self._datasets[part] = getattr(kwargs.get(loader), "dataset", None)
        if state.global_step:
            self._compare(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", "resumed")

    def on_evaluate(self, *_: Any, **kwargs: Any) -> None:
        """Record the validation data: the `Trainer` opens it late."""
        self._datasets["validation"] = getattr(kwargs.get("eval_dataloader"), "dataset", None)

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Save the adapter in a newly written checkpoint.

        Raises:
            TrainingError, TensorError: as for `to_adapter`.
        """
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            self._save(folder / CHECKPOINT_FOLDER, self._record(args, state, state.global_step), force=True)

    def on_train_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Save the adapter, the best one if the `Trainer` has loaded it, and call `build`.

        Raises:
            TrainingError: the weights differ from the best checkpoint, or, as TensorError, from `to_adapter`.
            OutputExistsError, WriteError: as for `write_adapter`.
        """
        if not state.is_world_process_zero:
            return
        step = state.global_step
        if args.load_best_model_at_end and state.best_model_checkpoint:
            best = Path(state.best_model_checkpoint)
            self._compare(best, "kept")
            step = int(best.name.rpartition("-")[2])
        self._save(self._output, self._record(args, state, step), force=self._force)
        if self._build is not None:
            self._build(self._output)

    def _save(self, folder: Path, record: Mapping[str, Any], *, force: bool) -> None:
        self._adapter.save(folder, name=self._name, training=record, force=force)

    def _compare(self, checkpoint: Path, what: str) -> None:
        """Compare the adapter with the one in a checkpoint, if this callback saved one there."""
        folder = checkpoint / CHECKPOINT_FOLDER
        if not folder.is_dir():
            return
        saved, present = read_adapter(folder).weights, self._adapter.to_adapter().weights
        differing = [
            f"`{name}`" for name in sorted({*saved, *present}) if not _same(saved.get(name), present.get(name))
        ]
        if differing:
            raise TrainingError(
                f"the adapter does not match the checkpoint that is {what}",
                where=folder,
                found=f"different weights in {', '.join(differing[:_NAMED])}",
                expected="equal weights, bit-exact",
                fix="attach an adapter of the same kind and widths, and train in float32; the adapter is in the folder",
            )

    def _record(self, args: Any, state: Any, step: int) -> dict[str, Any]:
        """Return the record that `train` writes, from the `Trainer`'s state."""
        adapter = self._adapter.adapter
        task = None if adapter is None or adapter.task is None else adapter.task.type
        history = _history(state.log_history)
        runtime = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
        settings = {name: getattr(args, name) for name in _SETTINGS}
        data = {f"{part}_rows": len(rows) for part, rows in self._datasets.items() if hasattr(rows, "__len__")}
        marks = {part: getattr(rows, "_fingerprint", None) for part, rows in self._datasets.items()}  # of `datasets`
        return {
            **({} if adapter is None else adapter.training),
            "producer": f"adapter-export {__version__}, transformers {transformers.__version__}",
            **({} if task is None else {"task": task}),
            "settings": {name: getattr(value, "value", value) for name, value in settings.items()},
            "data": {
                **data,
                **{f"{part}_fingerprint": mark for part, mark in marks.items() if isinstance(mark, str)},
                **self._sources,
            },
            "history": history,
            "kept_step": step,
            "validation": next((one.get("validation", {}) for one in history if one["step"] == step), {}),
            "steps": state.global_step,
            **({"seconds": runtime[-1]} if runtime else {}),
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        }


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is not None and other is not None and np.array_equal(one, other)


def _history(log: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Return the losses and scores by step as logged by the `Trainer`, without non-finite values."""
    steps: dict[int, dict[str, Any]] = {}
    for entry in log:
        loss = entry.get("loss")
        scores = {
            name.removeprefix("eval_"): value
            for name, value in entry.items()
            if name.startswith("eval_") and not name.endswith(_SPEED) and math.isfinite(value)
        }
        found = {} if loss is None or not math.isfinite(loss) else {"training_loss": loss}
        if found or scores:
            record = steps.setdefault(int(entry["step"]), {"epoch": entry.get("epoch"), "step": int(entry["step"])})
            record |= found
            if scores:
                record["validation"] = record.get("validation", {}) | scores
    return list(steps.values())
