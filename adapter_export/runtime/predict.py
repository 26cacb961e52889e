"""From logits to labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """What an adapter says about one row.

    Attributes:
        label: the most probable class.
        probability: its probability.
        probabilities: of every class, in the order of the logits.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]


def predict(logits: np.ndarray, labels: Sequence[str]) -> list[Prediction]:
    """Predictions for logits [batch, classes]."""
    return [_prediction(row, labels) for row in softmax(logits)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def _prediction(row: np.ndarray, labels: Sequence[str]) -> Prediction:
    best = int(row.argmax())
    return Prediction(labels[best], float(row[best]), dict(zip(labels, map(float, row), strict=True)))
