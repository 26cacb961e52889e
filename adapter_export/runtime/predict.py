"""From logits to labels, for a text or for each of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prediction:
    """What an adapter says about one text, or about one token.

    Attributes:
        label: the most probable class.
        probability: its probability.
        probabilities: of every class, in the order of the logits.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]


def predict(logits: np.ndarray, labels: Sequence[str]) -> list[Prediction]:
    """Predictions for logits [rows, classes]."""
    return [_prediction(row, labels) for row in softmax(logits)]


def predict_tokens(
    logits: np.ndarray, labels: Sequence[str], real: npt.NDArray[np.bool_] | None
) -> list[list[Prediction | None]]:
    """Predictions for logits [batch, tokens, classes], none at padding.

    Args:
        logits: the logits.
        labels: the name of each class.
        real: which tokens are real, [batch, tokens]; all of them if not given.
    """
    kept = np.ones(logits.shape[:2], bool) if real is None else real
    return [
        [one if keep else None for one, keep in zip(predict(row, labels), keeps, strict=True)]
        for row, keeps in zip(logits, kept, strict=True)
    ]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def _prediction(row: np.ndarray, labels: Sequence[str]) -> Prediction:
    best = int(row.argmax())
    return Prediction(labels[best], float(row[best]), dict(zip(labels, map(float, row), strict=True)))
