"""What can compute the outputs of a base with or without an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from adapter_export.graph.adapter import Adapter

Arrays = dict[str, np.ndarray]
"""Inputs or outputs by name."""


class Runner(Protocol):
    """A base with a choice of adapter per call: the torch reference, the cut ONNX reference, a session."""

    @property
    def description(self) -> str:
        """What computes, for reports: `torch 2.13.0 float32`."""

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None) -> Arrays:
        """All outputs of the base by name and, for an adapter with a head, its logits [batch, classes] at `logits`."""
