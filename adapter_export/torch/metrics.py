"""How well classes are predicted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from adapter_export.torch.attach import AdaptedModel
from adapter_export.torch.data import Examples, Rows, evaluation_batches


@dataclass(frozen=True)
class Scores:
    """Of a model on some rows.

    Attributes:
        loss: the mean cross-entropy of a row, in nats.
        accuracy: the fraction of rows whose class is predicted.
        macro_f1: the mean of the F1 scores of the classes that occur, among the rows or the predictions.
    """

    loss: float
    accuracy: float
    macro_f1: float

    def is_better_than(self, other: Scores) -> bool:
        """Whether it has the higher accuracy, or the same and the lower loss."""
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


def evaluate(model: AdaptedModel, examples: Examples, batch_size: int) -> Scores:
    """Compute the scores of a model with a head; the model's mode is left as it was."""
    was_training = model.training
    model.eval()
    predicted = np.zeros_like(examples.classes)
    loss = 0.0
    with torch.inference_mode():
        for rows in evaluation_batches(examples.lengths, batch_size):
            logits = model.head(**model.placed(examples.inputs(rows))).cpu()
            loss += float(F.cross_entropy(logits, torch.from_numpy(examples.classes[rows]), reduction="sum"))
            predicted[rows] = logits.argmax(-1).numpy()
    model.train(was_training)
    accuracy = float((predicted == examples.classes).mean())
    return Scores(loss / len(predicted), accuracy, macro_f1(examples.classes, predicted))


def macro_f1(true: Rows, predicted: Rows) -> float:
    """The mean over the classes that occur in either of `2·hits / (true + predicted)`."""
    scores = [
        2
        * int(((true == number) & (predicted == number)).sum())
        / (int((true == number).sum()) + int((predicted == number).sum()))
        for number in np.union1d(true, predicted)
    ]
    return float(np.mean(scores))
