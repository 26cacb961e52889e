"""Memory needed by a training step, measured in forward passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from adapter_export.graph.adapter import Adapter
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.attach import attach
from adapter_export.torch_backend.base.torch_base import TorchBase

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
