"""Memory needed by a training step, measured in forward passes, and the passes of batches with wide outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from adapter_export.graph.adapter import Adapter
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.attach import AdaptedModel, attach
from adapter_export.torch_backend.base.torch_base import TorchBase

if TYPE_CHECKING:
    from adapter_export.training.loop.data import Examples, Rows

MOST_OUTPUTS = 2**27
"""Maximum numbers in an output of the base in a pass over several rows: half a gigabyte, which a step holds some times.

The logits of 300 tokens of three texts, with a vocabulary of 150,000.
"""

_COPIES = 4
"""Copies of a tensor trained by Adam: the tensor, its gradient, and two moments."""

Inputs = Mapping[str, np.ndarray]


def training_memory(
    base: TorchBase, adapter: Adapter, sites: SiteMap, one_row: Inputs, two_rows: Inputs, rows: int
) -> int:
    """Return the minimum bytes of a training step: weights, gradients, moments, and tensors saved for backward.

    The saved tensors are measured in passes over one row and over two of the same length, and extrapolated to `rows`.

    Raises:
        AdapterError, RequestError: the base cannot compute such rows.
    """
    model = attach(base, replace(adapter, base=base.fingerprint), sites=sites)
    weights = [tensor for _, tensor in (*base.program.named_parameters(), *base.program.named_buffers())]
    stored = {tensor.untyped_storage().data_ptr() for tensor in (*weights, *model.parameters())}
    activations = []
    for inputs in (one_row, two_rows):
        seen: dict[int, int] = {}

        def keep(tensor: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in stored:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = model.hidden(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        activations.append(sum(seen.values()))
        del result  # releases the saved tensors
    held = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    return held + _COPIES * adapter.cost().bytes + activations[0] + (rows - 1) * (activations[1] - activations[0])


def passes(model: AdaptedModel, examples: Examples, rows: Rows, least: int = 1) -> Sequence[Rows]:
    """Split rows into passes in which the outputs of the base have at most `MOST_OUTPUTS` numbers, or of a row each.

    Args:
        model: the model.
        examples: rows of a data set.
        rows: those of a batch.
        least: minimum number of passes, if there are as many rows.
    """
    per_row = examples.positions(rows) * model.widest // len(rows)
    most_rows = max(1, MOST_OUTPUTS // max(1, per_row))
    return np.array_split(rows, min(max(least, math.ceil(len(rows) / most_rows)), len(rows)))
