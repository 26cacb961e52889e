"""Settings of a training run: its loop, its machine, and the loss of a distillation. Annotated fields are options."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from adapter_export.errors import TrainingError, UsageError
from adapter_export.option import THREADS, Option
from adapter_export.words import argument

Precision = Literal["no", "bf16", "fp16"]

_INFINITE = float("inf")

_STEPS, _MOST_EPOCHS, _LONG_WARMUP = 120, 30, 0.3
"""Steps that a small table needs, the most passes for them, and the warm-up of such a run: found on the tables of
`benchmarks/defaults.py`, which compares them with other settings."""


@dataclass(frozen=True)
class LoopSpec:
    """Settings of the training loop; the defaults suit a few thousand sentences and a bottleneck of 64.

    Attributes:
        epochs: maximum passes over the training rows.
        learning_rate: peak learning rate.
        warmup: fraction of the steps over which the learning rate rises.
        patience: epochs without an improvement after which training stops.
        clip: maximum norm of the gradient of all tensors together; longer gradients are scaled down to it.
        checkpoint_steps: steps between two checkpoints; one is also written after each epoch.
        fusion_temperature_decay: fraction of its initial temperature that a fusion loses in each step, down to 1.
        value_penalty: coefficient of ‖I − V‖² in the loss, over the value projections of a fusion.
        temperature: divisor of the cosines in the loss of vectors; `None` uses the loss' default.
        precision: precision of matrix products; `no` is float32.
        max_minutes: time after which training stops, and within which the learning rate falls; `None` for no limit.

    Raises:
        UsageError: a value is out of range.
    """

    batch_size: Annotated[int, "Rows per step."] = 32
    # decoupled, without biases and norms (Loshchilov & Hutter 2019, §2)
    weight_decay: Annotated[float, "Weight decay (projection matrices only)."] = 0.01
    gradient_accumulation: Annotated[int, "Split each batch into N micro-batches; the update is unchanged."] = 1
    seed: Annotated[int, "Random seed."] = 0
    # Rücklé et al. 2021, §3.2
    drop_layers: Annotated[
        int,
        "Each step, skip adapters in a random 0 to N of the lowest layers, so that they can be dropped (AdapterDrop).",
    ] = 0
    cache_mb: Annotated[
        int, "Memory in MiB for activations below the first adapter, and then for packed copies of the base's weights."
    ] = 1024
    metric: Annotated[
        str | None, Option("Metric that selects the best epoch, or `loss`; the default depends on the task.", "NAME")
    ] = None
    class_weights: Annotated[
        Literal["balanced"] | Mapping[str, float] | None,
        "Loss weight of each label, or `balanced`: inversely proportional to its frequency.",
    ] = None
    epochs: int = 4
    learning_rate: float = 1e-3
    warmup: float = 0.1
    patience: int = 3
    clip: float = 1.0
    checkpoint_steps: int = 100
    fusion_temperature_decay: float = 0.0
    value_penalty: float = 0.0
    temperature: float | None = None
    precision: str = "no"
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        rules: Sequence[tuple[Sequence[str], Callable[[float], bool], str]] = (
            (
                ("epochs", "batch_size", "patience", "checkpoint_steps", "gradient_accumulation"),
                lambda x: x >= 1,
                "at least 1",
            ),
            (("learning_rate", "clip"), lambda x: 0 < x < _INFINITE, "a number above 0"),
            (("warmup",), lambda x: 0 <= x < 1, "a fraction, at least 0 and below 1"),
            (
                ("fusion_temperature_decay", "value_penalty", "weight_decay", "cache_mb", "drop_layers"),
                lambda x: 0 <= x < _INFINITE,
                "at least 0",
            ),
            (("seed",), lambda x: x >= 0, "at least 0"),
            (("max_minutes",), lambda x: x is None or 0 < x < _INFINITE, "a number above 0"),
        )
        for names, holds, expected in rules:
            for name in names:
                found = getattr(self, name)
                if not holds(found):
                    raise UsageError(argument(name) + " is out of range", found=found, expected=expected)
        weights = self.class_weights if isinstance(self.class_weights, Mapping) else {}
        if not all(0 < weight < _INFINITE for weight in weights.values()):
            raise UsageError(argument("class_weights") + " is out of range", found=weights, expected="above 0")


_OF_SCHEDULE = ("epochs", "learning_rate", "warmup", "patience", "max_minutes")
"""Options of a schedule that are settings of a loop."""


@dataclass(frozen=True)
class Schedule:
    """Options for the length of a run; values that are not passed follow from the number of training rows."""

    epochs: Annotated[
        int | None,
        Option(
            f"Maximum passes over the training rows; enough for {_STEPS} steps by default, 4 to {_MOST_EPOCHS}.", "N"
        ),
    ] = None
    learning_rate: Annotated[float, "Peak learning rate."] = LoopSpec.learning_rate
    warmup: Annotated[
        float | None,
        f"Fraction of the steps over which the learning rate rises; {LoopSpec.warmup} by default, {_LONG_WARMUP} for a "
        "small table.",
    ] = None
    patience: Annotated[
        int | None,
        Option("Stop after N epochs without an improvement; half of the epochs by default, at least 3.", "N"),
    ] = None
    max_minutes: Annotated[
        float | None,
        Option("Stop training after N minutes, and keep the best epoch; results then depend on the machine.", "N"),
    ] = None
    quick: Annotated[bool, f"A first look: at most {LoopSpec.epochs} epochs, and no baseline."] = False

    def __post_init__(self) -> None:
        LoopSpec(**self._chosen)  # check the ranges before a model is opened

    def loop(self, loop: LoopSpec, rows: int) -> LoopSpec:
        """Return the settings of a loop over this number of training rows."""
        epochs, warmup = self.epochs, LoopSpec.warmup
        if epochs is None:
            needed = math.ceil(_STEPS / math.ceil(rows / loop.batch_size))
            epochs = LoopSpec.epochs if self.quick else min(max(needed, LoopSpec.epochs), _MOST_EPOCHS)
            warmup = _LONG_WARMUP if epochs > LoopSpec.epochs else warmup
        # the rate falls until the last epoch, so the patience of a long run must not end it before that helps
        patience = max(LoopSpec.patience, epochs // 2)
        return replace(loop, **{"warmup": warmup, "patience": patience, **self._chosen, "epochs": epochs})

    @property
    def _chosen(self) -> dict[str, Any]:
        chosen = {name: getattr(self, name) for name in _OF_SCHEDULE}
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True)
class ContrastiveLoss:
    """Settings of the loss of vectors."""

    temperature: Annotated[
        float | None,
        "Divisor of the cosines in the loss; 0.05 by default for pairs, 0.1 for labels (`embedding` only).",
    ] = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 < self.temperature < _INFINITE:
            name, expected = argument("temperature"), "a number above 0"
            raise UsageError(name + " is out of range", found=self.temperature, expected=expected)

    def loop(self, loop: LoopSpec) -> LoopSpec:
        """Return the settings of a loop with the temperature."""
        return replace(loop, temperature=self.temperature)


@dataclass(frozen=True)
class Machine:
    """Device of a run, its precision, threads and trackers."""

    device: Annotated[
        str | None, Option("`cpu`, `cuda`, `cuda:1`, `mps`, …; defaults to the best available device.", "NAME")
    ] = None
    precision: Annotated[
        Precision | None,
        "Precision of matrix products; the weights stay float32. `no` is float32 and the default, `fp16` needs a GPU.",
    ] = None
    threads: Annotated[int | None, THREADS] = None
    log_to: Annotated[
        tuple[str, ...],
        "Experiment trackers to log to: `tensorboard`, `wandb`, `mlflow` and others that accelerate supports.",
    ] = ()
    resume: Annotated[bool, "Resume an interrupted run; fail if there is none."] = False
    restart: Annotated[bool, "Discard an interrupted run."] = False

    def __post_init__(self) -> None:
        if self.resume and self.restart:
            both = argument("resume") + " and " + argument("restart")
            raise UsageError(both + " exclude each other", fix="pass only one")

    def checkpoints(self, output: Path | None) -> Path | None:
        """Return the folder of an interrupted run, beside its output; it is deleted if the run restarts.

        Raises:
            UsageError: there is no output.
            TrainingError: there is no interrupted run to resume.
        """
        if output is None:
            if self.resume or self.restart:
                fix = "pass " + argument("output")
                raise UsageError("only a run with an output can be resumed", fix=fix)
            return None
        partial = output.with_name(f"{output.name}.partial")
        if self.restart:
            shutil.rmtree(partial, ignore_errors=True)
        if self.resume and not partial.exists():
            fix = "remove " + argument("resume") + " to start a run"
            raise TrainingError("there is no interrupted run", where=partial, fix=fix)
        return partial


@dataclass(frozen=True)
class DistillationLoss:
    """Weights of the three losses of a distillation, and settings of the first two."""

    soft: Annotated[float, "Weight of the loss on the teacher's logits."] = 1.0
    hidden: Annotated[float, "Weight of the loss on the teacher's hidden states."] = 1.0
    hard: Annotated[float, "Weight of the loss on the labels."] = 1.0
    temperature: Annotated[float, "Softmax temperature of the loss on logits."] = 2.0
    match: Annotated[
        Literal["cosine", "mse"], "Distance of hidden states: 1 − cosine, or the mean squared difference."
    ] = "cosine"

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("soft", "hidden", "hard")}
        for name, weight in weights.items():
            if not 0 <= weight < _INFINITE:
                raise UsageError("the weight of a loss must be at least 0", where=argument(name), found=weight)
        if not any(weights.values()):
            raise UsageError("at least one loss needs a weight above 0", found="three weights of 0")
        if not 0 < self.temperature < _INFINITE:
            raise UsageError("the temperature must be above 0", found=self.temperature)
