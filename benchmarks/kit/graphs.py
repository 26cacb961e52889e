"""Calls of single graphs, their tensors ready where the graph runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from adapter_export.runtime.graphs import Provider, on_device, open_session, run_bound
from kit.timing import Call


class Graph:
    """A graph in a session.

    Args:
        path: the ONNX file.
        provider: where it runs.
        threads: how many one operation may use.
    """

    def __init__(self, path: Path, provider: Provider, threads: int) -> None:
        self._session = open_session(path, provider, "all", threads)
        self._provider: Provider = provider
        self._outputs = [output.name for output in self._session.get_outputs()]

    def call(self, feeds: Mapping[str, np.ndarray]) -> Call:
        """A call with these tensors. They are put onto the device once, here, and the outputs stay there."""
        values: dict[str, ort.OrtValue] = {name: on_device(array, self._provider) for name, array in feeds.items()}
        return lambda: run_bound(self._session, self._outputs, values, self._provider)
