"""Training loop on accelerate: an adapter is trained, and the base is frozen."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import pad

from adapter_export.dtypes import Weights
from adapter_export.errors import TrainingError, UsageError
from adapter_export.graph.compose.attention import VALUE
from adapter_export.graph.tasks import CAUSAL_LM
from adapter_export.graph.tasks.metrics import Metric
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.parsers import parsing
from adapter_export.tables import duration, number_of
from adapter_export.torch_backend.attach import AdaptedModel
from adapter_export.training.loop.cache import HiddenCache, results_of
from adapter_export.training.loop.checkpoint import (
    CHECKPOINT_FILE,
    RunState,
    difference,
    read_checkpoint,
    run_identity,
    write_checkpoint,
)
from adapter_export.training.loop.data import (
    Examples,
    Rows,
    TrainingData,
    class_weights,
    evaluation_batches,
    training_batches,
)
from adapter_export.training.loop.devices import Engine
from adapter_export.training.loop.distil_loop import Teacher
from adapter_export.training.loop.faster_graph import faster_graphs
from adapter_export.training.loop.measure import deciding, judged, measure
from adapter_export.training.loop.memory import passes
from adapter_export.training.loop.record import EpochRecord, TrainingResult
from adapter_export.training.loop.settings import LoopSpec, Machine, Precision
from adapter_export.training.objectives import OBJECTIVES
from adapter_export.training.objectives.objective import Loss, Scores
from adapter_export.words import argument


def rate_factor(step: int, total: int, warmup: float) -> float:
    """Return the factor on the learning rate at a step (from 0): linear up to 1 during warm-up, then down towards 0.

    It is above 0 at every step, so that no step is wasted. `warmup` is a fraction, at least 0 and below 1.
    """
    warm = round(total * warmup)
    return (step + 1) / warm if step < warm else (total - step) / (total - warm)


def evaluate(
    model: AdaptedModel,
    examples: Examples,
    settings: LoopSpec,
    accelerator: Accelerator | None = None,
    cache: HiddenCache | None = None,
) -> Scores:
    """Compute the scores of a model on all processes and restore its mode; `cache` is of these rows.

    Raises:
        AdapterError: it has no head, and the base has no logits of the next token.
        TrainingError: memory is exhausted.
    """
    return score_answers(model, examples, settings, answer_examples(model, examples, settings, accelerator, cache))


def score_answers(
    model: AdaptedModel, examples: Examples, settings: LoopSpec, answers: tuple[Rows, Tensor, Tensor]
) -> Scores:
    """Return the scores of what `answer_examples` returned; errors as for `evaluate`."""
    rows, results, targets = answers
    task = None if examples.problem == CAUSAL_LM else model.task
    objective = OBJECTIVES[examples.problem].of(settings, task)
    total, weight = objective.loss(results, targets, _class_weights(model, examples, settings))
    judgement = judged(task, results, targets, examples.only(rows))
    scores = Scores(float(total / weight) if weight else 0.0, measure(judgement))
    if judgement.decisions is not None:
        majority = judgement.decisions.majority
        own = {} if majority is None else {"label": majority.label, **majority.scores}
        scores = replace(scores, majority=own, collapse=judgement.decisions.collapse)
    decides = deciding(examples.problem, _labels(model), settings.metric)
    return scores if decides is None else replace(scores, decides=decides.name, more_is_better=decides.more_is_better)


def answer_examples(
    model: AdaptedModel,
    examples: Examples,
    settings: LoopSpec,
    accelerator: Accelerator | None = None,
    cache: HiddenCache | None = None,
) -> tuple[Rows, Tensor, Tensor]:
    """Compute the results of a model: the rows in their new order, and `matched` of them; errors as for `evaluate`.

    Each process computes a part of them, and gets all.
    """
    if accelerator is None:
        with _engine(model, settings).open() as own:
            return answer_examples(model, examples, settings, own, cache)
    was_training = model.training
    model.eval()
    batches = [
        part
        for batch in evaluation_batches(examples.lengths, settings.batch_size)
        for part in passes(model, examples, batch)
    ]
    parts = []
    with torch.inference_mode():
        # interleaved: batches are sorted by length, so that all processes get some of each length
        for rows in batches[accelerator.process_index :: accelerator.num_processes]:
            with _memory(rows, examples, "validation"):
                with accelerator.autocast():
                    results = results_of(model, examples, rows, cache).float()
                parts.append((rows, *examples.matched(results.cpu(), rows)))
    model.train(was_training)
    if accelerator.num_processes > 1:
        parts = gather_object(parts)
    every, answers, targets = zip(*parts, strict=True)
    return np.concatenate(every), torch.cat(answers), torch.cat(targets)


def train(
    model: AdaptedModel,
    data: TrainingData,
    settings: LoopSpec | None = None,
    *,
    checkpoints: Path | None = None,
    accelerator: Accelerator | None = None,
    teacher: Teacher | None = None,
    reporter: Reporter = SILENT,
) -> TrainingResult:
    """Train an attached adapter, or a student; the model then has the best epoch's weights, in `eval` mode.

    The same model, data, settings, number of threads and of processes give bit-identical weights, even if interrupted:
    a run resumes from the checkpoint in the folder `checkpoints`. The state of torch's global generator is restored.

    Several processes, each with the same model and data, share the rows of each step and end with the same weights,
    which equal those of one process within rounding if there is no dropout.

    Raises:
        UsageError: a metric or class weights that the task does not have.
        TrainingError: there is no head, the loss or the gradient became NaN or Inf, memory is exhausted, the folder
            contains a checkpoint of another run, or another process has other data or settings.
        WriteError: a checkpoint could not be written.
    """
    settings = settings or LoopSpec()
    if accelerator is None:
        with _engine(model, settings).open() as own:
            return train(
                model, data, settings, checkpoints=checkpoints, accelerator=own, teacher=teacher, reporter=reporter
            )
    if model.head_name is None and data.training.problem != CAUSAL_LM:
        raise TrainingError("the adapter has no head to train", fix="add a head")
    if not model.learned():
        raise TrainingError("no tensor of the adapter is trainable", fix="name the tensors to train when you attach it")
    alone = accelerator.num_processes == 1 and teacher is None
    if OBJECTIVES[data.training.problem].compares and settings.gradient_accumulation > 1 and not alone:
        raise UsageError(
            "the loss compares the rows of a step, so they can be split only by one process without a teacher",
            where=argument("gradient_accumulation"),
            found=f"{accelerator.num_processes} processes" if teacher is None else "a teacher",
            fix="remove it, or use a smaller " + argument("batch_size"),
        )
    if teacher is not None and OBJECTIVES[data.training.problem].compares and accelerator.num_processes > 1:
        raise UsageError(
            "a student that learns vectors must be trained in one process",
            found=f"{accelerator.num_processes} processes",
            fix="start it without `torchrun`",
        )
    path = None if checkpoints is None else checkpoints / CHECKPOINT_FILE
    run = _Run(model, data, settings, path, accelerator, teacher, reporter)
    generators = [] if accelerator.device.type in ("cpu", "mps") else [accelerator.device.index or 0]
    with torch.random.fork_rng(devices=generators, device_type=accelerator.device.type):
        return run.finish()


class _Pace:
    """Running means of the loss and of the rows per second, weighted towards the last steps."""

    _SMOOTHING = 0.95

    def __init__(self) -> None:
        self._means: tuple[float, ...] = ()

    def label(self, loss: float, speed: float, history: Sequence[EpochRecord]) -> str:
        """Return the progress label after a step: the epoch, the means, and the last value of the first metric."""
        old, new = self._SMOOTHING, 1 - self._SMOOTHING
        now = (loss, speed)
        self._means = tuple(old * x + new * y for x, y in zip(self._means, now, strict=True)) if self._means else now
        metrics = list(history[-1].validation.metrics.items())[:1] if history else []
        score = "".join(f", {Metric(name).words} {value:.3f}" for name, value in metrics)
        return f"training, epoch {len(history) + 1}: loss {self._means[0]:.3f}, {self._means[1]:,.0f} rows/s{score}"


class _Clock:
    """Time of a run, and its limit.

    Args:
        minutes: the limit; `None` for none.
        before: seconds of the interrupted run that is resumed.
        accelerator: of the run; all processes follow the clock of the first.
    """

    def __init__(self, minutes: float | None, before: float, accelerator: Accelerator) -> None:
        self._limit, self._accelerator = None if minutes is None else 60 * minutes, accelerator
        # the time before an interruption counts as well
        self._began = time.monotonic() - before
        self.reserved = 0.0  # seconds of the scores of an epoch, which end within the limit too
        self._part = self._measured()

    @property
    def part(self) -> float:
        """Share of the limit that was over at the last look; 0 without a limit."""
        return self._part

    def is_over(self) -> bool:
        """Look at the clock; return whether training must stop."""
        self._part = self._measured()
        return self._part >= 1

    def _measured(self) -> float:
        if self._limit is None:
            return 0.0
        part = (time.monotonic() - self._began + self.reserved) / self._limit
        if self._accelerator.num_processes > 1:
            # the clocks of processes differ, and all must stop at the same step
            part = float(gather_object([part])[0])
        return part


class _Run:
    """State of a run, and its next step."""

    def __init__(
        self,
        model: AdaptedModel,
        data: TrainingData,
        settings: LoopSpec,
        path: Path | None,
        accelerator: Accelerator,
        teacher: Teacher | None,
        reporter: Reporter,
    ) -> None:
        self._model, self._data, self._settings, self._path = model, data, settings, path
        self._accelerator, self._teacher, self._reporter, self._pace = accelerator, teacher, reporter, _Pace()
        task = None if data.training.problem == CAUSAL_LM else model.task
        self._objective = OBJECTIVES[data.training.problem].of(settings, task)
        weights = _class_weights(model, data.training, settings)
        self._class_weights = None if weights is None else weights.to(accelerator.device)
        deciding(data.training.problem, _labels(model), settings.metric)  # fail before the first epoch
        self._tensors = model.learned()
        self._optimizer = accelerator.prepare_optimizer(_optimizer(self._tensors.values(), settings))
        self._layers = [] if model.adapter is None else list(model.adapter.layers(model.sites).values())
        if settings.drop_layers and settings.drop_layers >= len(self._layers):
            raise UsageError(
                "at least one layer must always be trained",
                where=argument("drop_layers"),
                found=settings.drop_layers,
                expected=f"fewer than the {number_of(len(self._layers), 'layer')} with adapters",
            )
        self._steps_per_epoch = len(self._batches(0))
        self._steps = self._steps_per_epoch * settings.epochs
        self._identity = run_identity(model, data, settings) | ({} if teacher is None else teacher.facts())
        self._state = RunState()
        self._clock = _Clock(None, 0.0, accelerator)

    def finish(self) -> TrainingResult:
        self._check_processes()
        resumed_at = self._resume()
        before = sum(record.seconds for record in self._state.history) + self._state.seconds
        self._clock = _Clock(self._settings.max_minutes, before, self._accelerator)
        self._start_trackers()
        budget = self._fill_caches()
        exact = self._accelerator.device.type == "cpu" and self._accelerator.mixed_precision == "no"
        with faster_graphs(self._model, self._caches, budget) if exact else nullcontext():
            self._train(resumed_at)
        _load(self._tensors, self._state.best)
        self._cool(min(self._state.best_epoch * self._steps_per_epoch, self._state.step))
        self._model.eval()
        return TrainingResult(self._state.history, self._state.best_epoch, self._state.losses, resumed_at)

    def _train(self, resumed_at: int | None) -> None:
        """Train until the last epoch, or until patience or time end."""
        if resumed_at is not None:
            self._reporter.step(f"resuming the interrupted run after step {resumed_at:,} of {self._steps:,}")
        elif self._settings.epochs > 1 or self._settings.max_minutes is not None:
            self._reporter.step(self._bound())
        self._reporter.step("training", self._state.step, self._steps)
        history, patience = self._state.history, self._settings.patience
        in_time = True
        while len(history) < self._settings.epochs and len(history) - self._state.best_epoch < patience and in_time:
            self._train_epoch()
            in_time = not self._clock.is_over()
        if not in_time and len(history) < self._settings.epochs:
            self._reporter.warn(
                "stopped by "
                + argument("max_minutes", self._settings.max_minutes)
                + f" in epoch {len(history)} of {self._settings.epochs}; epoch {self._state.best_epoch} is kept"
            )

    def _bound(self) -> str:
        """Return the longest time of the run, from passes over two batches that change nothing, as a clause."""
        settings, batches = self._settings, self._batches(0)
        batch = sorted(batches, key=lambda rows: self._data.training.lengths[rows].sum())[len(batches) // 2]
        self._model.train()
        parts = self._passes(batch)
        # the first pass warms up
        seconds = [len(parts) * self._timed_pass(parts[0], gradient=gradient) for gradient in (True, True, False)][1:]
        measured = math.ceil(len(self._data.validation.lengths) / settings.batch_size)
        self._clock.reserved = measured * seconds[1]
        total = settings.epochs * (self._steps_per_epoch * seconds[0] + self._clock.reserved)
        epochs = f"at most {settings.epochs} epochs of {number_of(self._steps_per_epoch, 'step')}"
        patience = f"stops after {number_of(settings.patience, 'epoch')} without an improvement"
        limit = "" if settings.max_minutes is None else f", and never more than {duration(60 * settings.max_minutes)}"
        stops = f"; {patience}" if settings.patience < settings.epochs else ""
        return f"{epochs}, about {duration(total)}{limit}{stops}"

    def _timed_pass(self, rows: Rows, *, gradient: bool) -> float:
        """Return the seconds of a pass over a batch, which is discarded."""
        before = time.monotonic()
        with _memory(rows, self._data.training, "the first step"), torch.set_grad_enabled(gradient):
            total, _ = self._loss(rows)
            if gradient:
                total.backward()  # type: ignore[no-untyped-call]
                self._optimizer.zero_grad()
        total.item()  # wait for the device
        return time.monotonic() - before

    def _fill_caches(self) -> int:
        """Cache the activations below the first adapter, if they fit; those of the validation rows first.

        Returns:
            The bytes that are left of their budget.
        """
        self._caches: list[HiddenCache | None] = [None, None]
        budget, size = self._settings.cache_mb * 2**20, self._settings.batch_size
        if budget and self._settings.epochs > 1 and self._data.training.problem != CAUSAL_LM:
            with self._accelerator.autocast():
                for place, examples in enumerate((self._data.validation, self._data.training)):
                    with _memory(np.arange(len(examples.lengths)), examples, "the cache of hidden states"):
                        made = HiddenCache.of(self._model, examples, size, budget)
                    self._caches[place] = made
                    budget -= made.bytes if made else 0
        return budget

    def _check_processes(self) -> None:
        """Raise an error if another process has other rows."""
        if self._accelerator.num_processes == 1:
            return
        identities: list[Any] = gather_object([self._identity])
        for process, other in enumerate(identities):
            if other != identities[0]:
                raise TrainingError(
                    "the processes were not started with the same data and settings",
                    where=f"process {process} of {len(identities)}",
                    **difference(other, identities[0]),
                    fix="start all with the same arguments and files",
                )

    def _start_trackers(self) -> None:
        def refusal(reason: str) -> UsageError:
            fix = "configure it with its environment variables, such as `WANDB_MODE=offline` or `MLFLOW_TRACKING_URI`"
            return UsageError("a tracker cannot start", where=argument("log_to"), found=reason, fix=fix)

        facts = {name: str(fact) for name, fact in self._identity.items()}
        with parsing(refusal):
            self._accelerator.init_trackers("adapter-export", facts)

    def _batches(self, epoch: int) -> list[Rows]:
        return training_batches(self._data.training.lengths, self._settings.batch_size, (self._settings.seed, epoch))

    def _train_epoch(self) -> None:
        state, batches = self._state, self._batches(len(self._state.history))
        self._model.train()
        for rows in batches[state.step_in_epoch :]:
            before = time.monotonic()
            with _memory(rows, self._data.training, f"step {state.step + 1}"):
                loss, norm = self._take_step(rows)
            state.loss_sum += loss * len(rows)
            state.step += 1
            state.step_in_epoch += 1
            state.losses.append(loss)
            seconds = time.monotonic() - before
            state.seconds += seconds
            self._log(
                {
                    "training/loss": loss,
                    "training/learning_rate": self._optimizer.param_groups[0]["lr"],
                    "training/gradient_norm": norm,
                    "training/rows_per_second": len(rows) / seconds,
                }
            )
            self._reporter.step(self._pace.label(loss, len(rows) / seconds, state.history), state.step, self._steps)
            if state.step % self._settings.checkpoint_steps == 0 and state.step_in_epoch < self._steps_per_epoch:
                self._save()
            if self._clock.is_over():
                break
        self._cool(state.step)
        before = time.monotonic()
        scores = evaluate(self._model, self._data.validation, self._settings, self._accelerator, self._caches[0])
        loss = state.loss_sum / sum(map(len, batches[: state.step_in_epoch]))
        record = EpochRecord(len(state.history) + 1, loss, scores, state.seconds + time.monotonic() - before)
        state.history.append(record)
        if not state.best_epoch or scores.is_better_than(state.history[state.best_epoch - 1].validation):
            state.best_epoch = record.epoch
            state.best = _copy(self._tensors)
        state.step_in_epoch, state.loss_sum, state.seconds = 0, 0.0, 0.0
        metrics = {f"validation/{name}": value for name, value in scores.document().items()}
        self._log({**metrics, "training/epoch": record.epoch, "training/epoch_loss": loss})
        self._save()

    def _log(self, values: dict[str, float]) -> None:
        """Pass the measurements of the last step to the trackers and the reporter."""
        self._accelerator.log(values, step=self._state.step)
        self._reporter.measure(values, self._state.step)

    def _cool(self, steps: int) -> None:
        """Set the temperature of a fusion to its value after `steps` steps."""
        if self._settings.fusion_temperature_decay:
            self._model.cool(steps * self._settings.fusion_temperature_decay)

    def _take_step(self, rows: Rows) -> tuple[float, float]:
        """Update the weights once; return the loss of the rows before it, and the norm of the gradient."""
        accelerator, tensors = self._accelerator, self._tensors.values()
        process = (accelerator.process_index,) if accelerator.process_index else ()
        sequence = np.random.SeedSequence((self._settings.seed, self._state.step, *process))
        # a seed per step, not one per run: a resumed run must draw the same dropout
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        # within a limit of time, the rate falls as if its steps took all of it
        passed = max(self._state.step, min(int(self._clock.part * self._steps), self._steps - 1))
        factor = rate_factor(passed, self._steps, self._settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.learning_rate * factor
        self._cool(self._state.step)
        self._drop()
        self._optimizer.zero_grad()
        sums = torch.zeros(2, device=accelerator.device)
        parts = self._passes(rows)
        if self._objective.compares and len(parts) > 1:
            sums += self._compare_parts(parts)
        else:
            for part in parts:
                found = self._loss(part)
                accelerator.backward(found[0] / len(rows))
                sums += torch.stack(found).detach()
        learnt = [tensor.grad for tensor in tensors if tensor.grad is not None]
        if accelerator.num_processes > 1:
            sums = self._summed(learnt, sums)
        total, weight = sums.tolist()
        loss = total / weight if weight else total
        # each part was divided by the rows, because the weight of all is only known now
        if weight not in (0, len(rows)):
            torch._foreach_mul_(learnt, len(rows) / weight)
        # after the sum over processes: every process would add the whole penalty
        values = [tensor for name, tensor in self._tensors.items() if name.endswith(f".{VALUE}")]
        if self._settings.value_penalty and values:
            # Σ(I − V)² over the value projections of a fusion (Pfeiffer et al. 2021, the authors' implementation)
            apart = [torch.eye(len(value), device=value.device, dtype=value.dtype) - value for value in values]
            distance = torch.stack([each.square().sum() for each in apart]).sum()
            accelerator.backward(self._settings.value_penalty * distance)
        # after the penalty, so that its gradient is clipped, too
        norm = accelerator.clip_grad_norm_(tensors, self._settings.clip).item()
        overflow = accelerator.scaler is not None  # the scaler skips the step and lowers its scale
        for name, value in (("loss", loss), *(() if overflow else (("gradient", norm),))):
            if not math.isfinite(value):
                raise self._not_finite(name, value, rows)
        self._optimizer.step()
        # the next evaluation runs with all layers
        self._model.leave_out(())
        return loss, norm

    def _passes(self, rows: Rows) -> Sequence[Rows]:
        """Split a batch as requested, and further if the outputs of the base are wide."""
        least = self._settings.gradient_accumulation
        if self._objective.compares and (self._accelerator.num_processes > 1 or self._teacher is not None):
            return [rows]  # `train` has checked that no more are requested
        return passes(self._model, self._data.training, rows, least)

    def _drop(self) -> None:
        """Skip the adapters of a random number of the lowest layers in the next step, at most `drop_layers`."""
        most = self._settings.drop_layers
        if most:
            # drawn from the step, so that a resumed run and all processes skip the same layers
            drawn = np.random.default_rng((self._settings.seed, self._state.step, most)).integers(most + 1)
            self._model.leave_out([site for layer in self._layers[:drawn] for site in layer])

    def _loss(self, rows: Rows) -> Loss:
        """Return the loss of this process's share of some rows; of all rows if the loss compares them."""
        examples, accelerator = self._data.training, self._accelerator
        shares = np.array_split(rows, accelerator.num_processes)
        local_rows = shares[accelerator.process_index]
        counts = len(local_rows) > 0 or self._objective.compares
        read = (
            local_rows if len(local_rows) else rows[:1]
        )  # every process needs a gradient for the sum, even without rows
        with accelerator.autocast():
            if self._teacher is None:
                results = results_of(self._model, examples, read, self._caches[1]).float()
            else:
                results, apart = self._teacher.distance(self._model, examples, read)
        if self._objective.compares and len(shares) > 1:
            results, _ = examples.matched(results, read)
            most = len(shares[0])
            # `gather` takes equal shapes, and the shares of rows may differ by one
            filled = pad(results.detach(), (0, 0) * (results.ndim - 1) + (0, most - len(results)))
            every = accelerator.gather(filled).unflatten(0, (len(shares), most))
            parts = [of_all[: len(share)] for of_all, share in zip(every, shares, strict=True)]
            # gathered results have no gradient: each process inserts its own
            parts[accelerator.process_index] = results[: len(local_rows)]
            results, read = torch.cat(parts), rows
        total, weight = self._objective.loss(*examples.matched(results, read), self._class_weights)
        if self._teacher is not None:
            total = self._teacher.loss.hard * total + weight * apart
        # 0 times the loss still has a gradient for the sum
        return (total, weight) if counts else (total * 0, weight * 0)

    def _compare_parts(self, parts: Sequence[Rows]) -> Tensor:
        """Add the gradient of a loss that compares all rows, with the activations of one part in memory at a time.

        The gradient of the loss by the results is computed first, from results without activations; then each part is
        computed again, with the same dropout, and backpropagates its gradient (GradCache; Gao et al. 2021, §3).

        Returns:
            The sum of the loss, and the weight of the rows.
        """
        examples, accelerator, rows = self._data.training, self._accelerator, np.concatenate(parts)
        seeds = torch.randint(2**62, (len(parts),)).tolist()

        def results(part: Rows, seed: int) -> Tensor:
            torch.manual_seed(seed)
            with accelerator.autocast():
                found = results_of(self._model, examples, part, self._caches[1]).float()
            return examples.matched(found, part)[0]

        with torch.no_grad():
            whole = torch.cat([results(*each) for each in zip(parts, seeds, strict=True)])
        whole.requires_grad_()
        total, weight = self._objective.loss(*examples.matched(whole, rows), self._class_weights)
        accelerator.backward(total / len(rows))
        assert whole.grad is not None  # a single row has no others to compare with: its loss is a constant 0
        gradients = torch.split(whole.grad, [len(part) for part in parts])
        for part, seed, gradient in zip(parts, seeds, gradients, strict=True):
            (results(part, seed) * gradient).sum().backward()  # type: ignore[no-untyped-call]
        return torch.stack([total, weight]).detach()

    def _summed(self, gradients: list[Tensor], sums: Tensor) -> Tensor:
        """Sum the gradients of all processes in place, and return their summed `sums`."""
        if self._objective.compares:
            sums = sums / self._accelerator.num_processes  # each process has computed all of it
        # one exchange for all tensors: adapters have many small ones
        flat = torch.cat([sums, *(gradient.flatten() for gradient in gradients)])
        flat = self._accelerator.reduce(flat, "sum")
        sums, *parts = flat.split([2, *(gradient.numel() for gradient in gradients)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return sums

    def _not_finite(self, name: str, value: float, rows: Rows) -> TrainingError:
        """Return the error for a loss or gradient that is not finite; it names the first layer with such a value."""
        state = self._state
        saved = f"; the best epoch so far is kept in {self._path}" if state.best_epoch and self._path else ""
        return TrainingError(
            f"the {name} is not finite",
            where=f"step {state.step + 1}, epoch {len(state.history) + 1}, {self._first_broken(rows)}",
            found=value,
            fix="lower the learning rate ("
            + argument("learning_rate")
            + f"), or check the data for malformed rows{saved}",
        )

    def _first_broken(self, rows: Rows) -> str:
        for name, tensor in self._tensors.items():
            if not tensor.isfinite().all():
                return f"tensor `{name}`"
        for call in self._data.training.calls(rows, pads=self._model.pads):
            with torch.no_grad(), self._model.observed() as seen, self._accelerator.autocast():
                self._model.result(self._model.placed(call.inputs))
            before = None
            for owner, of_site in seen.items():
                if not all(tensor.isfinite().all() for tensor in of_site.read.values()):
                    return f"between `{before}` and `{owner}`" if before else f"before `{owner}`"
                if not of_site.result.isfinite().all():
                    return f"at `{owner}`"
                before = owner
        gradients = ((name, tensor.grad) for name, tensor in self._tensors.items() if tensor.grad is not None)
        return f"gradient of `{next((name for name, grad in gradients if not grad.isfinite().all()), 'the loss')}`"

    def _save(self) -> None:
        if self._path is None or not self._accelerator.is_main_process:
            return
        moments = {name: self._optimizer.state[tensor] for name, tensor in self._tensors.items()}
        scaler = self._accelerator.scaler
        self._state.scaler = {} if scaler is None else scaler.state_dict()
        self._state.weights = _copy(self._tensors)
        self._state.first_moments = _copy({name: found["exp_avg"] for name, found in moments.items()})
        self._state.second_moments = _copy({name: found["exp_avg_sq"] for name, found in moments.items()})
        self._state.updates = _copy({name: found["step"] for name, found in moments.items()})
        write_checkpoint(self._state, self._identity, self._path)

    def _resume(self) -> int | None:
        """Load the checkpoint, if there is one, and return its step."""
        state = None if self._path is None else read_checkpoint(self._path, self._identity)
        if state is None:
            return None
        self._state = state
        _load(self._tensors, state.weights)
        for name, tensor in self._tensors.items():
            moments = self._optimizer.state[tensor]
            kept = {"exp_avg": state.first_moments, "exp_avg_sq": state.second_moments, "step": state.updates}
            _load(moments, {key: of_all[name] for key, of_all in kept.items()})
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state.scaler)
        return state.step


@contextmanager
def _memory(rows: Rows, examples: Examples, where: str) -> Iterator[None]:
    """Convert an out-of-memory error to one that names the settings to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # `torch.OutOfMemoryError` is one; the CPU raises others
        out = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not out:
            raise
        raise TrainingError(
            "out of memory",
            where=where,
            found=f"{number_of(len(rows), 'row')} of up to {int(examples.lengths[rows].max())} tokens",
            fix="raise "
            + argument("gradient_accumulation")
            + ", which does not change the result, or lower "
            + argument("batch_size")
            + ", "
            + argument("max_tokens")
            + " or "
            + argument("cache_mb"),
        ) from error


def _engine(model: AdaptedModel, settings: LoopSpec) -> Engine:
    """Return the engine of the model's device."""
    device = next((tensor.device.type for tensor in model.parameters()), "cpu")
    return Engine(Machine(device, cast("Precision", settings.precision)))


def _labels(model: AdaptedModel) -> Sequence[str]:
    """Return the names of the classes; empty without classes."""
    head = None if model.adapter is None else model.adapter.head
    return () if head is None else head.labels


def _class_weights(model: AdaptedModel, examples: Examples, settings: LoopSpec) -> Tensor | None:
    wanted = settings.class_weights
    return class_weights(wanted, examples.problem, _labels(model)) if isinstance(wanted, Mapping) else None


def _optimizer(tensors: Collection[Tensor], settings: LoopSpec) -> torch.optim.AdamW:
    """Return AdamW over the adapter's tensors, its moments at zero; biases, norms and mix weights do not decay."""
    matrices = [tensor for tensor in tensors if tensor.ndim > 1 and len(tensor) > 1]
    others = [tensor for tensor in tensors if tensor.ndim <= 1 or len(tensor) <= 1]
    decays = ((settings.weight_decay, matrices), (0.0, others))
    groups = [{"params": group, "weight_decay": decay} for decay, group in decays if group]
    on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    # one kernel per tensor instead of ten: adapters have many small ones
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=on_cpu or None)
    for tensor in tensors:
        # torch creates them at the first step, but a checkpoint is loaded before
        moments = {name: torch.zeros_like(tensor) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[tensor] = {"step": torch.tensor(0.0), **moments}
    return optimizer


def _copy(tensors: Mapping[str, Tensor]) -> Weights:
    # copies: the optimizer updates the tensors in place
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


def _load(tensors: Mapping[str, Tensor], weights: Weights) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            tensors[name].copy_(torch.from_numpy(weight))
