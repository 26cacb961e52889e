"""Runners: whatever computes the outputs of a base with or without an adapter."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np

from adapter_export.graph.adapter import Adapter
from adapter_export.graph.tasks import HeadOutput
from adapter_export.sites.site import SiteMap

Arrays = dict[str, np.ndarray]
"""Inputs or outputs by name."""

_PREFIXES = ("", "adapter_", "adapter_head_")


def head_output(base_outputs: Collection[str], result: HeadOutput = "logits") -> str:
    """The name of a head's output beside those of a base: `logits`, or `adapter_logits` if the base has `logits`."""
    return next(f"{prefix}{result}" for prefix in _PREFIXES if f"{prefix}{result}" not in base_outputs)


class Runner(Protocol):
    """A base with a choice of adapter per call: the torch reference, the cut ONNX reference, a session."""

    @property
    def description(self) -> str:
        """A name for reports: `torch 2.13.0 float32`."""

    @property
    def sites(self) -> SiteMap:
        """The sites of the base, at which adapters can act."""

    @property
    def keeps_weights(self) -> bool:
        """Return whether the base stays in memory, so that one more run costs its arithmetic alone."""

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None) -> Arrays:
        """All outputs of the base and, for an adapter with a head, its result under the name of `head_output`."""


def run(
    runner: Runner,
    inputs: Mapping[str, np.ndarray],
    adapter: Adapter | None,
    base_outputs: Collection[str],
    output: str | None,
) -> Arrays:
    """The outputs of `runner.run`, the result of the adapter's head as `output`, the name that it has in a graph."""
    outputs = runner.run(inputs, adapter)
    if adapter is None or adapter.head is None or output is None:
        return outputs
    own = head_output(base_outputs, adapter.head.output)
    return {output if name == own else name: value for name, value in outputs.items()}
