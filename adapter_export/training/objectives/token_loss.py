"""Loss of a label per word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adapter_export.graph.tasks.task_type import Measured
from adapter_export.training.objectives.objective import IGNORED, Loss, Objective, class_loss

if TYPE_CHECKING:
    from adapter_export.graph.tasks import Task
    from adapter_export.training.loop.data import TextExamples


class TokenObjective(Objective):
    """Cross-entropy of the first token of each word.

    Macro-F1 selects the best epoch, because most words have the uninformative label.
    """

    loss_name = "cross-entropy (nats)"
    decides = "macro_f1"

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:
        """Return the cross-entropy of logits [tokens, classes]."""
        return class_loss(results, targets, weights)

    def matched(self, examples: TextExamples, results: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return a row for each token that has a label, and the labels."""
        targets = _word_classes(examples, rows).to(results.device)
        learnt = targets != IGNORED
        return results[:, : targets.shape[1]][learnt], targets[learnt]

    def measured(self, task: Task, results: np.ndarray, targets: np.ndarray, examples: Any) -> Measured:  # noqa: ARG002
        """Return the logits and classes of the words of each row that were not truncated."""
        rows = (np.array([row]) for row in range(len(examples.texts)))
        words = [int((_word_classes(examples, row) != IGNORED).sum()) for row in rows]
        ends = np.cumsum(words)[:-1]
        return Measured(np.split(results, ends), np.split(targets, ends))


def _word_classes(examples: TextExamples, rows: np.ndarray) -> Tensor:
    """Return the classes of tokens [rows, tokens]: a word's is at its first token (Devlin et al. 2019, §5.3)."""
    encodings = examples.encodings(rows)
    targets = np.full((len(rows), len(encodings[0].ids)), IGNORED, np.int64)
    for target, encoding, row in zip(targets, encodings, rows, strict=True):
        words = encoding.word_ids
        for place, word in enumerate(words):
            if word is not None and word not in words[:place]:
                target[place] = examples.answers[row][word]
    return torch.from_numpy(targets)


OBJECTIVE = TokenObjective()
