"""How well a model does its task on some rows."""

from __future__ import annotations

import torch

from adapter_export.torch.attach import AdaptedModel
from adapter_export.torch.data import Examples, evaluation_batches
from adapter_export.torch.objectives import OBJECTIVES, Scores, labelled


def evaluate(model: AdaptedModel, examples: Examples, batch_size: int) -> Scores:
    """Compute the scores of a model with a head; the model's mode is left as it was.

    Raises:
        AdapterError: there is no head.
    """
    was_training = model.training
    model.eval()
    found = []
    with torch.inference_mode():
        for rows in evaluation_batches(examples.lengths, batch_size):
            results = model.head(**model.placed(examples.inputs(rows))).cpu()
            found.append(labelled(results, examples.targets(rows)))
    model.train(was_training)
    results, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    return OBJECTIVES[model.task].scores(results, targets)
