"""Graphs in OpenVINO's own runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime as ort

from adapter_export.errors import FormatError, RequestError
from adapter_export.providers import PROVIDERS, ProviderName, check_threads
from adapter_export.runtime.graphs import Arrays, Feeds, on_device, unavailable
from adapter_export.words import quoted


class OpenVinoGraph:
    """A graph that OpenVINO has compiled. Thread-safe: each call in progress has a request of its own.

    Args:
        compiled: the `openvino.CompiledModel`.
        metadata: of the model.
    """

    def __init__(self, compiled: Any, metadata: Mapping[str, str]) -> None:
        self.metadata = metadata
        self._compiled = compiled
        self._names = {port.any_name for port in compiled.inputs}
        self._outputs = {name: at for at, port in enumerate(compiled.outputs) for name in port.names}
        self._idle: list[Any] = []
        self._lock = Lock()

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> Arrays:
        """Compute outputs by name; RequestError if OpenVINO cannot compute these inputs.

        All inputs are required. OpenVINO would compute missing ones from memory of an earlier call, and its reader
        drops overridable initializers from the inputs.
        """
        if feeds.keys() != self._names:
            raise RequestError(
                "the tensors are not those that the graph takes",
                found=quoted(sorted(feeds.keys() - self._names)) or "no others",
                expected=quoted(sorted(self._names - feeds.keys())) or "only its inputs",
                fix="run with `cpu`",
            )
        arrays = {
            name: np.ascontiguousarray(value if isinstance(value, np.ndarray) else value.numpy())
            for name, value in feeds.items()
        }
        request = self._request()
        try:
            request.infer(arrays, share_inputs=True)
            # copies: the next call writes into the same memory
            results = {name: request.get_output_tensor(self._outputs[name]).data.copy() for name in outputs}
        except (RuntimeError, ValueError, TypeError) as error:
            raise RequestError(
                "OpenVINO cannot compute these inputs",
                found=_reason(error),
                fix="compare names, shapes and values with the inputs of the base",
            ) from error
        with self._lock:
            self._idle.append(request)
        return results

    def run_on_device(self, feeds: Feeds, outputs: Sequence[str]) -> dict[str, ort.OrtValue]:
        """Compute outputs as values in the CPU's memory; errors as of `run`."""
        return {name: on_device(array) for name, array in self.run(feeds, outputs).items()}

    def _request(self) -> Any:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._compiled.create_infer_request()


def open_openvino(path: Path, provider: ProviderName, threads: int | None = None) -> OpenVinoGraph:
    """Open an ONNX file with OpenVINO.

    Args:
        path: of the graph; its external data are read beside it.
        provider: row of the table.
        threads: threads of one operation. Default: OpenVINO's choice.

    Raises:
        UsageError: OpenVINO is not installed, or `threads` is out of range.
        FormatError: OpenVINO cannot open the graph.
    """
    try:
        import openvino  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise unavailable(provider, str(error)) from error
    check_threads(threads)
    row = PROVIDERS[provider]
    settings = {**row.options, **({} if threads is None else {"INFERENCE_NUM_THREADS": threads})}
    try:
        core = openvino.Core()
        model = core.read_model(path)
        metadata = {key: str(value) for key, value in _metadata(model).items()}
        return OpenVinoGraph(core.compile_model(model, row.device, settings), metadata)
    except RuntimeError as error:
        raise FormatError(
            "OpenVINO cannot open the graph",
            where=path,
            found=_reason(error),
            fix=f"run with `cpu`, or see whether another release than openvino {openvino.__version__} opens it",
        ) from error


def _metadata(model: Any) -> Mapping[str, Any]:
    metadata: Mapping[str, Any] = model.get_rt_info("framework").value if model.has_rt_info("framework") else {}
    return metadata


def _reason(error: Exception) -> str:
    """Return the last line of a message: the lines before it name source files of OpenVINO."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
