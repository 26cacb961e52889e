"""The training loop: an adapter and its head learn a task, the base stays as it is."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from adapter_export.dtypes import Weights
from adapter_export.errors import TrainingError, argument
from adapter_export.format.files import new_file
from adapter_export.graph.compose.attention import VALUE
from adapter_export.torch_backend.attach import AdaptedModel
from adapter_export.torch_backend.train.data import Rows, TextExamples, evaluation_batches, training_batches
from adapter_export.torch_backend.train.measure import measure
from adapter_export.torch_backend.train.objectives import OBJECTIVES, Scores
from adapter_export.torch_backend.train.record import EpochRecord, Progress, Silent, TrainingResult, TrainingSettings


def evaluate(model: AdaptedModel, examples: TextExamples, batch_size: int) -> Scores:
    """Compute the scores of a model; its mode is left as it was. Raises AdapterError if it has no head."""
    was_training = model.training
    model.eval()
    batches = evaluation_batches(examples.lengths, batch_size)
    with torch.inference_mode():
        found = [examples.matched(model.head(**model.placed(examples.inputs(rows))).cpu(), rows) for rows in batches]
    model.train(was_training)
    results, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    objective = OBJECTIVES[model.task.type]
    metrics = measure(model.task, results, targets, examples.only(np.concatenate(batches)))
    return Scores(float(objective.loss(results, targets)), metrics, objective.decides)


CHECKPOINT_FILE = "checkpoint.safetensors"
"""Where an interrupted run goes on: its tensors, and its numbers as JSON in the file's own metadata."""

_GROUPS = ("weights", "first_moments", "second_moments", "best")
_NUMBERS = ("step", "step_in_epoch", "loss_sum", "seconds", "best_epoch")


@dataclass
class RunState:
    """All that a run knows between two steps.

    Loss and seconds are sums over the present epoch so far; `best_epoch` counts from 1, 0 before the first. Randomness
    is not in it: each step and each epoch draws from a generator of its own, seeded by its number.
    """

    step: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    weights: Weights = field(default_factory=dict)
    first_moments: Weights = field(default_factory=dict)
    second_moments: Weights = field(default_factory=dict)
    best: Weights = field(default_factory=dict)


def write_checkpoint(state: RunState, digest: str, path: Path) -> None:
    """Write a state with the `run_digest` of its run; at every moment `path` holds a whole checkpoint, old or new."""
    tensors = {f"{group}/{name}": tensor for group in _GROUPS for name, tensor in getattr(state, group).items()}
    numbers = {name: getattr(state, name) for name in _NUMBERS}
    numbers["history"] = [asdict(record) for record in state.history]
    with new_file(path, force=True) as temporary:
        temporary.write_bytes(save(tensors, {"digest": digest, "state": json.dumps(numbers)}))


def read_checkpoint(path: Path, digest: str) -> RunState | None:
    """Read the state of a run, if there is a checkpoint.

    Raises:
        TrainingError: the file is damaged, or of a run with another digest: other data, settings or first weights.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if metadata["digest"] == digest:
            numbers = json.loads(metadata["state"])
            history = [
                EpochRecord(**{**record, "validation": Scores(**record["validation"])})
                for record in numbers.pop("history")
            ]
            groups: dict[str, Weights] = {group: {} for group in _GROUPS}
            for key, tensor in tensors.items():
                group, _, name = key.partition("/")
                groups[group][name] = tensor
            return RunState(**{**numbers, **groups, "history": history})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            "the checkpoint is damaged",
            where=path,
            found=error,
            fix=f"delete it, or give {argument('restart', True)} to start anew",
        ) from error
    raise TrainingError(
        "an interrupted run with other data, settings or weights lies here",
        where=path,
        fix=f"repeat its settings to go on with it, or give {argument('restart', True)} to start anew",
    )


def rate_factor(step: int, total: int, warmup: float) -> float:
    """The factor on the learning rate at a step, from 0 on: in a line up to 1 over the warm-up, then down towards 0.

    It is above 0 at every step, so that no step is wasted. `warmup` is a fraction, at least 0 and below 1.
    """
    warm = round(total * warmup)
    return (step + 1) / warm if step < warm else (total - step) / (total - warm)


@dataclass(frozen=True)
class TrainingData:
    """The rows to learn from and those to measure by."""

    training: TextExamples
    validation: TextExamples


def train(
    model: AdaptedModel,
    data: TrainingData,
    settings: TrainingSettings | None = None,
    *,
    progress: Progress | None = None,
    checkpoints: Path | None = None,
) -> TrainingResult:
    """Train an attached adapter; afterwards the model holds the weights of the best epoch, in `eval` mode.

    The same model, data, settings and number of threads give the same weights bit for bit, interrupted or not: a run
    goes on from the checkpoint in the folder `checkpoints`. torch's own generator is as it was before.

    Raises:
        TrainingError: there is no head, the loss or the gradient became NaN or Inf, or the folder holds a checkpoint
            of another run.
        WriteError: a checkpoint could not be written.
    """
    if model.head_name is None:
        raise TrainingError("the adapter has no head, so there is nothing to train it for", fix="give it a head")
    if not model.learned():
        raise TrainingError("none of the adapter's tensors shall learn", fix="name some, or all, when it is attached")
    path = None if checkpoints is None else checkpoints / CHECKPOINT_FILE
    run = _Run(model, data, settings or TrainingSettings(), progress or Silent(), path)
    with torch.random.fork_rng(devices=[]):
        return run.finish()


class _Run:
    """A run: its state, and how it takes the next step."""

    def __init__(
        self, model: AdaptedModel, data: TrainingData, settings: TrainingSettings, progress: Progress, path: Path | None
    ) -> None:
        self._model, self._data, self._settings, self._progress, self._path = model, data, settings, progress, path
        self._objective = OBJECTIVES[model.task.type]
        self._tensors = model.learned()
        self._optimizer = _optimizer(self._tensors.values(), settings)
        self._steps_per_epoch = len(self._batches(0))
        self._digest = run_digest(model, data, settings)
        self._state = RunState()

    def finish(self) -> TrainingResult:
        resumed_at = self._resume()
        self._progress.started(self._steps_per_epoch * self._settings.epochs, self._state.step)
        history, patience = self._state.history, self._settings.patience
        while len(history) < self._settings.epochs and len(history) - self._state.best_epoch < patience:
            self._train_epoch()
        _load(self._tensors, self._state.best)
        self._cool(self._state.best_epoch * self._steps_per_epoch)
        self._model.eval()
        return TrainingResult(self._state.history, self._state.best_epoch, self._state.step, resumed_at)

    def _batches(self, epoch: int) -> list[Rows]:
        return training_batches(self._data.training.lengths, self._settings.batch_size, (self._settings.seed, epoch))

    def _train_epoch(self) -> None:
        state = self._state
        began = time.monotonic() - state.seconds
        self._model.train()
        for rows in self._batches(len(state.history))[state.step_in_epoch :]:
            loss = self._take_step(rows)
            state.loss_sum += loss * len(rows)
            state.step += 1
            state.step_in_epoch += 1
            state.seconds = time.monotonic() - began
            self._progress.stepped(loss)
            if state.step % self._settings.checkpoint_steps == 0 and state.step_in_epoch < self._steps_per_epoch:
                self._save()
        self._cool(state.step)
        scores = evaluate(self._model, self._data.validation, self._settings.batch_size)
        loss = state.loss_sum / len(self._data.training.lengths)
        record = EpochRecord(len(state.history) + 1, loss, scores, time.monotonic() - began)
        state.history.append(record)
        if not state.best_epoch or scores.is_better_than(state.history[state.best_epoch - 1].validation):
            state.best_epoch = record.epoch
            state.best = _copy(self._tensors)
        state.step_in_epoch, state.loss_sum, state.seconds = 0, 0.0, 0.0
        self._progress.epoch_finished(record)
        self._save()

    def _cool(self, steps: int) -> None:
        """Set the temperature of a fusion to what it is after so many steps."""
        if self._settings.temperature_decay:
            self._model.cool(steps * self._settings.temperature_decay)

    def _take_step(self, rows: Rows) -> float:
        """One update; the loss of its batch before it."""
        sequence = np.random.SeedSequence((self._settings.seed, self._state.step))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        factor = rate_factor(self._state.step, self._steps_per_epoch * self._settings.epochs, self._settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.learning_rate * factor
        self._cool(self._state.step)
        examples = self._data.training
        results = self._model.head(**self._model.placed(examples.inputs(rows)))
        loss = self._objective.loss(*examples.matched(results, rows))
        penalty: Tensor | float = 0.0
        if self._settings.value_penalty:
            # Σ(I − V)² over the value projections of a fusion (Pfeiffer et al. 2021, the authors' implementation)
            values = [tensor for name, tensor in self._tensors.items() if name.endswith(f".{VALUE}")]
            apart = [torch.eye(len(value), device=value.device, dtype=value.dtype) - value for value in values]
            penalty = self._settings.value_penalty * sum(each.square().sum() for each in apart)
        self._optimizer.zero_grad()
        (loss + penalty).backward()  # type: ignore[no-untyped-call]
        norm = clip_grad_norm_(self._tensors.values(), self._settings.clip)
        for name, value in (("loss", loss.item()), ("gradient", norm.item())):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {name} is not finite",
                    where=f"step {self._state.step + 1}, epoch {len(self._state.history) + 1}",
                    found=value,
                    fix=f"lower the learning rate ({argument('learning_rate')}), or look for broken rows in the data",
                )
        self._optimizer.step()
        return loss.item()

    def _save(self) -> None:
        if self._path is None:
            return
        moments = {name: self._optimizer.state[tensor] for name, tensor in self._tensors.items()}
        self._state.weights = _copy(self._tensors)
        self._state.first_moments = _copy({name: found["exp_avg"] for name, found in moments.items()})
        self._state.second_moments = _copy({name: found["exp_avg_sq"] for name, found in moments.items()})
        write_checkpoint(self._state, self._digest, self._path)

    def _resume(self) -> int | None:
        """Take up the checkpoint, if there is one; the step that it was written after."""
        state = None if self._path is None else read_checkpoint(self._path, self._digest)
        if state is None:
            return None
        self._state = state
        _load(self._tensors, state.weights)
        for name, tensor in self._tensors.items():
            moments = self._optimizer.state[tensor]
            moments["step"].fill_(state.step)
            _load(moments, {"exp_avg": state.first_moments[name], "exp_avg_sq": state.second_moments[name]})
        return state.step


def run_digest(model: AdaptedModel, data: TrainingData, settings: TrainingSettings) -> str:
    """The sha256 of all that makes a run what it is: base, first weights, rows and settings."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    head = model.adapter and model.adapter.head
    for text in (model.base.fingerprint, repr(model.adapter and model.adapter.graphs), repr(head), repr(model.sites)):
        digest.update(text.encode())
    for name, tensor in _copy(model.tensors()).items():
        digest.update(name.encode() + tensor.tobytes())
    digest.update(repr(list(model.learned())).encode())
    for examples in (data.training, data.validation):
        digest.update(examples.fingerprint.encode())
    return digest.hexdigest()


def _optimizer(tensors: Collection[Tensor], settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over the adapter's tensors, its moments at zero; biases, norms and weights of mixes do not decay."""
    matrices = [tensor for tensor in tensors if tensor.ndim > 1 and len(tensor) > 1]
    others = [tensor for tensor in tensors if tensor.ndim <= 1 or len(tensor) <= 1]
    decays = ((settings.weight_decay, matrices), (0.0, others))
    groups = [{"params": group, "weight_decay": decay} for decay, group in decays if group]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    for tensor in tensors:
        moments = {name: torch.zeros_like(tensor) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[tensor] = {"step": torch.tensor(0.0), **moments}
    return optimizer


def _copy(tensors: Mapping[str, Tensor]) -> Weights:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


def _load(tensors: Mapping[str, Tensor], weights: Weights) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            tensors[name].copy_(torch.from_numpy(weight))
