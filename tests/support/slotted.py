"""The graph of a base with slots in ONNX Runtime, filled by one adapter after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from adapter_export.graph.adapter import Adapter
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import Arrays, run_session

Run = Callable[[Mapping[str, np.ndarray]], Arrays]
"""From inputs to outputs."""


class Slotted:
    """A base with slots for all of some adapters."""

    def __init__(self, base: OnnxBase, adapters: Sequence[Adapter]) -> None:
        self._plan = plan_slots(adapters, base.sites)
        self._session = open_session(insert_slots(base, self._plan), base.folder)

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None = None) -> Arrays:
        """All outputs with an adapter in the slots, or with nothing in them."""
        tensors = {} if adapter is None else slot_tensors(self._plan, adapter)
        return run_session(self._session, {**inputs, **tensors})


def in_slots(base: OnnxBase, adapter: Adapter) -> Run:
    """Return a runner of a base with slots for one adapter, filled with it."""
    return partial(Slotted(base, [adapter]).run, adapter=adapter)
