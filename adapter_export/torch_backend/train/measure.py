"""The metrics of a model on labelled rows, by the engine that judges answers: those of `adapter-export evaluate`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.errors import UsageError, argument, quoted
from adapter_export.graph.tasks import Learnt, Task
from adapter_export.numerics.metrics import (
    Judged,
    Metric,
    judge_choices,
    judge_classes,
    judge_label_sets,
    judge_neighbours,
    judge_numbers,
    judge_ranking,
    judge_spans,
    judge_tags,
    judge_tokens,
    metrics_of,
)
from adapter_export.runtime.answers import Span, activated, answer
from adapter_export.torch_backend.train.data import Examples, TextExamples
from adapter_export.torch_backend.train.objectives import OBJECTIVES

LOSS = "loss"
"""The name under which the loss decides, and is recorded."""


def deciding(problem: Learnt, labels: Sequence[str], wanted: str | None) -> Metric | None:
    """Return the metric that decides which epoch is kept, that of the objective if none is wanted; none is the loss.

    Raises:
        UsageError: the task has no such metric.
    """
    name = OBJECTIVES[problem].decides if wanted is None else wanted
    metrics = {metric.name: metric for metric in metrics_of(problem, labels)}
    if name in (None, LOSS):
        return None
    if name not in metrics:
        expected = quoted((LOSS, *metrics))
        raise UsageError(
            f"the task `{problem}` has no such metric", where=argument("metric"), found=f"`{name}`", expected=expected
        )
    return metrics[name]


def measure(task: Task | None, results: Tensor, targets: Tensor, examples: Examples) -> dict[str, float]:
    """Return the metrics of a task by name; one that is not defined for these rows is left out.

    Args:
        task: what the results mean; none for the next token, which no head gives.
        results: as `TextExamples.matched` returns them.
        targets: likewise.
        examples: the rows, in the same order.

    Raises:
        DataError: the rows cannot be judged, such as one row alone that has no neighbour.
    """
    found = judged(task, results, targets, examples)
    values = found.measure(np.arange(found.units))
    named = zip(found.metrics, values, strict=True)
    return {metric.name: float(value) for metric, value in named if np.isfinite(value)}


def judged(task: Task | None, results: Tensor, targets: Tensor, examples: Examples) -> Judged:
    """Return the rows judged; arguments and errors are those of `measure`."""
    found, wanted = results.double().numpy(), targets.numpy()
    if task is None:
        return judge_tokens(found[:, 0], found[:, 1])
    match task.type:
        case "single_label":
            return judge_classes(activated(task, found), wanted, task.labels)
        case "multi_label":
            thresholds = [task.threshold(label) for label in range(len(task.labels))]
            return judge_label_sets(activated(task, found), wanted > 0, task.labels, thresholds)
        case "multiple_choice":
            assert isinstance(examples, TextExamples)
            choices = [len(pairs) for pairs in examples.texts]
            return judge_choices([scores[:count] for scores, count in zip(found, choices, strict=True)], wanted)
        case "token":
            assert isinstance(examples, TextExamples)
            probabilities, ends = activated(task, found), np.cumsum(examples.words_with_tokens())[:-1]
            flat = probabilities.argmax(-1), wanted, probabilities.max(-1)
            answered, right, sure = (np.split(one, ends) for one in flat)
            return judge_tags(answered, right, task.labels, sure)
        case "span":
            assert isinstance(examples, TextExamples)
            return judge_spans(spans(task, found, examples), [[one.text for one in row] for row in examples.answers])
        case "regression":
            return judge_numbers(activated(task, found), wanted.astype(np.float64))
        case "embedding":
            return judge_neighbours(found, [str(label) for label in wanted])
        case "ranking":
            assert isinstance(examples, TextExamples)
            return judge_ranking(activated(task, found), wanted, [text.first for text in examples.texts])


def cosine_apart(vectors: Tensor, classes: Tensor) -> float:
    """Return the mean cosine of two rows of different classes; NaN if all are of one."""
    unit = F.normalize(vectors.double(), dim=-1)
    counts = torch.bincount(classes)
    sums = unit.new_zeros(len(counts), unit.shape[1]).index_add(0, classes, unit)
    pairs = counts.sum().square() - counts.square().sum()
    return float((sums.sum(0).square().sum() - sums.square().sum()) / pairs)


def spans(task: Task, logits: np.ndarray, examples: TextExamples) -> list[str]:
    """Return the part of each context that answers its question, by logits [rows, tokens, 2]."""
    texts = []
    for row, of_row in enumerate(logits):
        (encoding,) = examples.encodings(np.array([row]))
        context = np.array([part == 1 for part in encoding.sequence_ids])
        found = answer(task, of_row[: len(context)], context, context)
        assert isinstance(found, Span)
        begin, end = encoding.offsets[found.first_token][0], encoding.offsets[found.last_token][1]
        texts.append(examples.texts[row].second[begin:end])
    return texts
