"""The graphs of a bundle in sessions of ONNX Runtime, each opened when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from adapter_export.errors import FormatError, RequestError, UsageError
from adapter_export.format.manifest import Flavour, Manifest

# Sessions of ONNX Runtime on the device that was asked for, and on no other.

Provider = Literal["cpu", "cuda"]
Optimization = Literal["all", "basic", "none"]

FAILURES: tuple[type[Exception], ...] = (
    state.EPFail,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
    RuntimeError,
)
"""What ONNX Runtime raises when a model or a call is not to its liking."""

_PROVIDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    # TF32 keeps 10 bits of each factor: products would be off by 1e-3 without a word
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}

_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

_ERRORS_ONLY = 3


def open_session(
    path: Path, provider: Provider, optimization: Optimization, threads: int | None
) -> ort.InferenceSession:
    """Open a graph.

    Args:
        path: the ONNX file.
        provider: where to compute.
        optimization: how far ONNX Runtime may rewrite the graph.
        threads: how many threads one operation may use; ONNX Runtime's own choice if not given.

    Raises:
        UsageError: an unknown provider or level, or a provider that is not available here.
        FormatError: ONNX Runtime cannot open the graph.
    """
    name, settings = _provider(provider)
    try:
        session = ort.InferenceSession(str(path), _options(optimization, threads), providers=[(name, settings)])
    except FAILURES as error:
        raise FormatError(
            "ONNX Runtime cannot open the graph",
            where=path,
            found=str(error).partition("\n")[0],
            fix=f"see whether another release than onnxruntime {ort.__version__} opens it",
        ) from error
    if session.get_providers()[0] != name:  # it falls back to the CPU with a log line only
        raise _unavailable(provider, f"{name} does not start; the session would run on {session.get_providers()[0]}")
    return session


def on_device(array: np.ndarray, provider: Provider) -> ort.OrtValue:
    """An array where a session computes; on the CPU it is the array itself, not a copy."""
    return ort.OrtValue.ortvalue_from_numpy(array, provider, 0)


def _options(optimization: Optimization, threads: int | None) -> ort.SessionOptions:
    if optimization not in _LEVELS:
        raise UsageError("unknown optimization level", found=f"`{optimization}`", expected=", ".join(_LEVELS))
    if threads is not None and threads < 1:
        raise UsageError("a session needs a thread", found=threads, expected="at least 1")
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[optimization]
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = _ERRORS_ONLY  # a warning for each overridable initializer otherwise
    return options


def _provider(provider: str) -> tuple[str, dict[str, Any]]:
    if provider not in _PROVIDERS:
        raise UsageError("unknown provider", found=f"`{provider}`", expected=", ".join(_PROVIDERS))
    name, settings = _PROVIDERS[provider]
    available = ort.get_available_providers()
    if name not in available:
        raise _unavailable(provider, f"onnxruntime {ort.__version__} with {', '.join(available)}")
    return name, settings


def _unavailable(provider: str, found: str) -> UsageError:
    return UsageError(
        f"`{provider}` is not available here",
        found=found,
        expected=_PROVIDERS[provider][0],
        fix="install `onnxruntime-gpu` and the CUDA libraries that it names, or run with `cpu`",
    )


_FATAL_ONLY = 4

_MISSING: Mapping[str, str] = {
    "bank": "rows of one batch through different adapters",
}


class Graphs:
    """Opens and runs the graphs of a bundle; any number of threads may call.

    Args:
        manifest: the bundle's.
        provider: where the graphs run.
        open_graph: opens the file at a path of the manifest.
    """

    def __init__(
        self, manifest: Manifest, provider: Provider, open_graph: Callable[[str], ort.InferenceSession]
    ) -> None:
        self.manifest = manifest
        self.provider: Provider = provider
        self._open_graph = open_graph
        self._sessions: dict[Flavour, ort.InferenceSession] = {}
        self._lock = Lock()
        self._options = ort.RunOptions()
        self._options.log_severity_level = _FATAL_ONLY  # a call that fails raises; it need not be logged as well

    def session(self, flavour: Flavour) -> ort.InferenceSession:
        """The session of a flavour.

        Raises:
            RequestError: the bundle does not have it.
            FormatError: ONNX Runtime cannot open it.
        """
        if flavour not in self._sessions:
            with self._lock:
                if flavour not in self._sessions:
                    self._sessions[flavour] = self._open_graph(self._path(flavour))
        return self._sessions[flavour]

    def run(self, flavour: Flavour, names: Sequence[str], feeds: Mapping[str, ort.OrtValue]) -> dict[str, np.ndarray]:
        """Compute outputs.

        Raises:
            RequestError: the bundle does not have the flavour, or ONNX Runtime cannot compute these inputs.
        """
        session = self.session(flavour)
        try:
            values = session.run_with_ort_values(list(names), dict(feeds), self._options)
        except FAILURES as error:
            raise incomputable(error) from error
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}

    def _path(self, flavour: Flavour) -> str:
        path = self.manifest.graphs.get(flavour)
        if path is None:
            flavours = ",".join(dict.fromkeys(("slots", "inputs", flavour)))
            raise RequestError(
                f"the bundle has no graph for {_MISSING.get(flavour, flavour)}",
                found=", ".join(f"`{name}`" for name in self.manifest.graphs),
                expected=f"`{flavour}`",
                fix=f"build it with `--flavours {flavours}`, or give each call one `adapter`",
            )
        return path


def incomputable(error: Exception) -> RequestError:
    """The named error for what ONNX Runtime raises in a call."""
    return RequestError(
        "ONNX Runtime cannot compute these inputs",
        found=str(error).partition("\n")[0],
        fix="check their lengths against what the base takes",
    )
