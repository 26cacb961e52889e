"""Sessions of ONNX Runtime: opened on the device that was asked for and on no other, run with named errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from adapter_export.errors import FormatError, RequestError, UsageError, argument, quoted
from adapter_export.format.manifest import Manifest, VariantName
from adapter_export.safe_io.parsers import parsing

Provider = Literal["cpu", "cuda"]
Optimization = Literal["all", "basic", "none"]

Arrays = dict[str, np.ndarray]
Feeds = Mapping[str, ort.OrtValue]

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
    ValueError,  # a missing input
)
"""Exceptions that ONNX Runtime raises for a model or a call that it does not take."""

PROVIDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    # TF32 keeps 10 bits of each factor: products would be off by 1e-3 without a word
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}

_SLOW: dict[str, tuple[str, ...]] = {"cpu": ("SkipLayerNormFusion", "BiasGeluFusion")}
"""Optimizers that slow a graph down: a sum and a norm, or a sum and a GELU, take longer in one kernel than in two."""

_SPINNING = "session.intra_op.allow_spinning"
"""Threads of a session that wait for the next operation keep a processor busy, unless this is 0: where others need that
processor, a call takes many times as long."""

_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def open_session(
    graph: Path | bytes,
    provider: Provider = "cpu",
    optimization: Optimization = "all",
    threads: int | None = None,
    *,
    where: Path | None = None,
    settings: Mapping[str, str] | None = None,
    leave_out: Sequence[str] = (),
) -> ort.InferenceSession:
    """Open an ONNX file, or a model in memory: `where` is its file, or the folder with its external data.

    Without `threads`, ONNX Runtime chooses how many one operation may use; `settings` are further entries of the
    session's configuration, and `leave_out` the names of optimizers that do not run.

    Raises:
        UsageError: an unknown provider or level, or a provider that is not available here.
        FormatError: ONNX Runtime cannot open the graph.
    """
    if provider not in PROVIDERS:
        raise UsageError("unknown provider", found=f"`{provider}`", expected=", ".join(PROVIDERS))
    name, of_provider = PROVIDERS[provider]
    available = ort.get_available_providers()
    if name not in available:
        raise _unavailable(provider, f"onnxruntime {ort.__version__} with {', '.join(available)}")
    if optimization not in _LEVELS:
        raise UsageError("unknown optimization level", found=f"`{optimization}`", expected=", ".join(_LEVELS))
    if threads is not None and threads < 1:
        raise UsageError("a session needs a thread", found=threads, expected="at least 1")
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[optimization]
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # fatal: errors are raised, and each overridable initializer would give a warning
    if where is not None:
        folder = str((where if where.is_dir() else where.parent).resolve())
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    for key, value in {_SPINNING: "0", **(settings or {})}.items():
        options.add_session_config_entry(key, value)
    model, named = (graph, where) if isinstance(graph, bytes) else (str(graph), graph)
    left_out = [*leave_out, *_SLOW.get(provider, ())]
    without = {"disabled_optimizers": left_out} if left_out else {}

    def refusal(reason: str) -> FormatError:
        fix = f"see whether another release than onnxruntime {ort.__version__} opens it"
        return FormatError("ONNX Runtime cannot open the graph", where=named, found=reason, fix=fix)

    with parsing(refusal):
        session = ort.InferenceSession(model, options, providers=[(name, of_provider)], **without)
    if session.get_providers()[0] != name:  # it falls back to the CPU with a log line only
        raise _unavailable(provider, f"{name} does not start; the session would run on {session.get_providers()[0]}")
    return session


def _unavailable(provider: str, found: str) -> UsageError:
    return UsageError(
        f"`{provider}` is not available here",
        found=found,
        expected=PROVIDERS[provider][0],
        fix="install `onnxruntime-gpu` and the CUDA libraries that it names, or run with `cpu`",
    )


def on_device(array: np.ndarray, provider: Provider = "cpu") -> ort.OrtValue:
    """Return an array where a session computes; on the CPU it is the array itself, not a copy."""
    return ort.OrtValue.ortvalue_from_numpy(array, provider, 0)


def run_session(
    session: ort.InferenceSession,
    feeds: Mapping[str, np.ndarray],
    outputs: Sequence[str] | None = None,
    *,
    options: ort.RunOptions | None = None,
) -> Arrays:
    """Compute outputs by name, all if none are given; RequestError if ONNX Runtime cannot compute these inputs.

    `feeds` are the inputs, and tensors for overridable initializers. The caller keeps an active adapter of `options`
    alive.
    """
    names = list(outputs or [output.name for output in session.get_outputs()])
    try:
        return dict(zip(names, session.run(names, dict(feeds), options), strict=True))
    except FAILURES as error:
        raise _named(error) from error


def run_values(session: ort.InferenceSession, feeds: Feeds, outputs: Sequence[str]) -> Arrays:
    """Compute outputs by name, as `run_session` does, from values that may lie on a device."""
    try:
        values = session.run_with_ort_values(list(outputs), dict(feeds))
    except FAILURES as error:
        raise _named(error) from error
    return {name: value.numpy() for name, value in zip(outputs, values, strict=True)}


def run_bound(
    session: ort.InferenceSession, names: Sequence[str], feeds: Feeds, provider: Provider
) -> dict[str, ort.OrtValue]:
    """Compute outputs that stay on the device, by IO binding; what is fed from there is not copied.

    ONNX Runtime ignores native adapters (`RunOptions.add_active_adapter`) here without an error: adapters are bound as
    the inputs that they are.
    """
    binding = session.io_binding()
    try:
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, provider, 0)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
    except FAILURES as error:
        raise _named(error) from error
    return dict(zip(names, binding.get_outputs(), strict=True))


def _named(error: Exception) -> RequestError:
    return RequestError(
        "ONNX Runtime cannot compute these inputs",
        found=str(error).partition("\n")[0],
        fix="compare names, shapes and values with the inputs of the base",
    )


class Graphs:
    """The graphs of a bundle, opened by their paths in it when first needed, that with slots at once. Thread-safe."""

    def __init__(
        self, manifest: Manifest, provider: Provider, open_file: Callable[[str], ort.InferenceSession]
    ) -> None:
        self.manifest = manifest
        self.provider: Provider = provider
        self._open_file = open_file
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._lock = Lock()
        self.session("slots")

    def session(self, variant: VariantName) -> ort.InferenceSession:
        """Return the session of a variant; RequestError if the bundle does not have it, FormatError if it is broken."""
        path = self.manifest.graphs.get(variant)
        if path is None:
            variants = argument("variants", list(dict.fromkeys(("slots", "inputs", variant))))
            missing = "rows of one batch through different adapters" if variant == "bank" else variant
            raise RequestError(
                f"the bundle has no graph for {missing}",
                found=quoted(self.manifest.graphs),
                expected=f"`{variant}`",
                fix=f"build it with {variants}, or give each call one `adapter`",
            )
        return self.opened(path)

    def opened(self, path: str) -> ort.InferenceSession:
        """Return the session of a file of the bundle; FormatError if it is broken."""
        if path not in self._sessions:
            with self._lock:
                if path not in self._sessions:
                    self._sessions[path] = self._open_file(path)
        return self._sessions[path]
