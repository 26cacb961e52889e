"""Notes of a training: clauses about its rows, its adapter and its scores, each with what to try."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from adapter_export.tables import number_of
from adapter_export.words import argument, command

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged
    from adapter_export.training.job import Start
    from adapter_export.training.loop.baseline import Baseline
    from adapter_export.training.loop.record import TrainingResult
    from adapter_export.training.loop.settings import LoopSpec
    from adapter_export.training.loop.task_files import TextTask
    from adapter_export.training.objectives.objective import Scores

_ALIKE = 0.99
"""Mean cosine of dissimilar rows above which the contrastive loss is within 0.1 nats of that of equal vectors."""

_FELL = 0.5
"""Share of its first value below which the training loss has fallen."""

_RARE, _SHARE, _NAMED = 5, 0.25, 5
"""Training rows, and share of the mean of all classes, below which a class is rare; most classes that a note names."""


def rare_classes(rows: TextTask) -> dict[str, int]:
    """Return the training rows of each class with few of them, the rarest first."""
    import numpy as np

    from adapter_export.graph.tasks import TASK_TYPES

    kind = TASK_TYPES[rows.problem]
    if not (kind.has_labels and kind.pools):
        return {}
    answers = np.asarray(rows.training.answers)
    # unlabelled rows of a distillation have a negative class
    counts = answers.sum(0) if answers.ndim > 1 else np.bincount(answers[answers >= 0], minlength=len(rows.labels))
    most = min(_RARE, _SHARE * counts.mean())
    rare = sorted((int(count), label) for label, count in zip(rows.labels, counts, strict=True) if count < most)
    return {label: count for count, label in rare}


def rare(classes: Mapping[str, int]) -> Iterator[str]:
    """Yield a note that names the classes with few training rows."""
    if classes:
        named = _some(f"`{label}` ({count})" for label, count in classes.items())
        yield (
            f"{number_of(len(classes), 'class', 'classes')} with fewer than {_RARE} training rows: {named}; the "
            "scores hardly measure them: add rows, or try " + argument("class_weights", "balanced")
        )


def rare_recall(recall: Mapping[str, Sequence[int]], part: str) -> Iterator[str]:
    """Yield a note on the recall of rare classes, as right answers and rows of each."""
    if recall:
        named = _some(
            f"`{label}` {right} of {count}" if count else f"`{label}` not among them"
            for label, (right, count) in recall.items()
        )
        yield f"right answers to rare classes, on the {part} rows: {named}"


def _some(entries: Iterable[str]) -> str:
    """Join the first entries, and count the others."""
    listed = list(entries)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


def not_better(ours: Judged, baseline: Baseline, result: TrainingResult, loop: LoopSpec) -> Iterator[str]:
    """Yield a note if the adapter does not beat the baseline beyond the interval of the difference."""
    import numpy as np

    from adapter_export.graph.tasks.metrics import FEWEST_COMPARED, is_better

    part = "test" if "test" in baseline.judged else "validation"
    other, metric = baseline.judged[part], ours.metrics[0]
    if ours.units < FEWEST_COMPARED or is_better(ours, other, metric):
        return
    score, reference = (judged.measure(np.arange(judged.units))[0] for judged in (ours, other))
    yield (
        f"{metric.words} {score:.3f} on {number_of(ours.units, f'{part} row')} is not clearly better than "
        f"{reference:.3f} of the {baseline.name}; " + _advice(result, loop)
    )


def _advice(result: TrainingResult, loop: LoopSpec) -> str:
    """Return what to try, by the course of the losses."""
    history = result.history
    rose = history[-1].training_loss > history[0].training_loss
    if rose or history[-1].validation.loss > 2 * min(epoch.validation.loss for epoch in history):
        return "the loss rose: try a smaller learning rate, " + argument("learning_rate", loop.learning_rate / 4)
    falls = history[-1].training_loss > _FELL * history[0].training_loss
    if falls or result.best_epoch == loop.epochs:
        reason = "the training loss was still high" if falls else "the last epoch was the best"
        return f"{reason}: try more, " + argument("epochs", 2 * loop.epochs)
    return "add rows, or compare kinds and rates with " + command("sweep(…)", "sweep MODEL")


def too_many_parameters(start: Start, rows: int) -> Iterator[str]:
    """Yield a note if the adapter has enough parameters to memorize its rows; heads do not count."""
    from adapter_export.graph.adapter import HEAD
    from adapter_export.training.specs import MOST_PER_ROW

    learned = start.model.learned().items()
    count = sum(tensor.numel() for name, tensor in learned if not name.startswith(f"{HEAD}."))
    if count > MOST_PER_ROW * rows:
        narrower = command("plan(…, rows=…)", f"plan MODEL --rows {rows}")
        yield (
            f"{number_of(count, 'parameter')} for {number_of(rows, 'training row')}, more than {MOST_PER_ROW:,} per "
            "row, so the adapter may memorize them; compare it with the narrower one recommended by " + narrower
        )


def undecided(scores: Scores) -> Iterator[str]:
    """Yield a note if nearly all validation rows get the same answer."""
    if scores.collapse is not None:
        yield (
            f"{scores.collapse} (validation rows); use more "
            + argument("epochs")
            + ", a larger "
            + argument("learning_rate")
            + ", or "
            + argument("class_weights", "balanced")
        )


def collapsed(cosine: float) -> Iterator[str]:
    """Yield a note if rows of different labels have nearly identical vectors, by their mean cosine."""
    if cosine > _ALIKE:
        yield (
            f"the vectors are nearly identical (mean cosine of rows with different labels: {cosine:.4f}), so "
            "they do not separate labels; use a smaller "
            + argument("learning_rate")
            + ", or more "
            + argument("epochs")
        )
