"""What can compute the outputs of a base with or without an adapter."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np

from adapter_export.graph.adapter import Adapter

Arrays = dict[str, np.ndarray]
"""Inputs or outputs by name."""

_HEAD_OUTPUTS = ("logits", "adapter_logits", "adapter_head_logits")


def head_output(base_outputs: Collection[str]) -> str:
    """The name of a head's output beside those of a base: `logits`, or `adapter_logits` if the base has `logits`."""
    return next(name for name in _HEAD_OUTPUTS if name not in base_outputs)


class Runner(Protocol):
    """A base with a choice of adapter per call: the torch reference, the cut ONNX reference, a session."""

    @property
    def description(self) -> str:
        """What computes, for reports: `torch 2.13.0 float32`."""

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None) -> Arrays:
        """All outputs of the base by name and, for an adapter with a head, its logits [batch, classes].

        The logits have the name that `head_output` gives: `logits`, unless the base has such an output.
        """
