"""Tasks of prediction heads, and the outputs that they fill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from adapter_export.graph.graph import DATA_AXES
from adapter_export.graph.ops import Shape

Task = Literal["sequence_classification", "token_classification", "regression", "embedding"]
"""One class for a text, one for each of its tokens, one or several numbers for it, or a vector."""

HeadOutput = Literal["logits", "token_logits", "embedding"]
"""Outputs of heads: `logits` [batch, classes], `token_logits` [batch, tokens, classes], `embedding` [batch, width]."""

TASKS: tuple[Task, ...] = get_args(Task)

DEFAULT_TASK: Task = "sequence_classification"
"""That of a head which does not say what it is for."""

LABELLED: tuple[Task, ...] = ("sequence_classification", "token_classification")
"""The tasks whose results are classes with names."""

TASK_OUTPUTS: Mapping[Task, HeadOutput] = {
    "sequence_classification": "logits",
    "token_classification": "token_logits",
    "regression": "logits",
    "embedding": "embedding",
}
"""A regression's numbers stand where the logits of a classification stand, so that both may share a head's slots."""

OUTPUT_SHAPES: Mapping[HeadOutput, str] = {
    "logits": "[batch, classes]",
    "token_logits": "[batch, tokens, classes]",
    "embedding": "[batch, width], with any width but `classes`",
}

CLASSES = "classes"
"""The symbol of the axis with one number per class, or per number of a regression."""


def head_result(shape: Shape) -> HeadOutput | None:
    """The output that a head with a result of this symbolic shape fills; none if no head may have it."""
    if shape == ("batch", CLASSES):
        return "logits"
    if shape == ("batch", "tokens", CLASSES):
        return "token_logits"
    vector = len(shape) == 2 and shape[0] == "batch" and shape[1] not in DATA_AXES
    return "embedding" if vector else None
