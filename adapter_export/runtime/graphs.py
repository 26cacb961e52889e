"""Graphs of a bundle, opened with a provider and no other, and run with errors that name the cause."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Literal, Protocol

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from adapter_export.errors import FormatError, RequestError, UsageError
from adapter_export.format.manifest import Manifest, VariantName
from adapter_export.providers import PROVIDERS, Provider, ProviderName, check_threads, provider_named
from adapter_export.runtime.arena import SHARED, options_of_next_call, register_arena
from adapter_export.safe_io.parsers import parsing
from adapter_export.words import argument, quoted

Optimization = Literal["all", "basic", "none"]

Arrays = dict[str, np.ndarray]
Values = Mapping[str, ort.OrtValue]

Feeds = Mapping[str, np.ndarray | ort.OrtValue]
"""Arrays, and tensors that stay where a graph runs."""

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
"""Exceptions that ONNX Runtime raises for an invalid model or call."""

_SLOW: dict[str, tuple[str, ...]] = {"cpu": ("SkipLayerNormFusion", "BiasGeluFusion")}
"""Optimizers that slow graphs down: their fused kernels are slower than two separate ones."""

_SPINNING = "session.intra_op.allow_spinning"
"""Setting that is 0 so that idle threads sleep: spinning threads slow down other processes."""

_NO_PLUGIN: tuple[type[Exception], ...] = (ImportError, AttributeError, *FAILURES)

_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def open_session(
    graph: Path | bytes,
    provider: ProviderName = "cpu",
    optimization: Optimization = "all",
    threads: int | None = None,
    *,
    where: Path | None = None,
    settings: Mapping[str, str] | None = None,
    leave_out: Sequence[str] = (),
) -> ort.InferenceSession:
    """Open an ONNX file, or a model in memory.

    Args:
        graph: the file, or the bytes of a model.
        provider: a row of the table whose runtime is ONNX Runtime.
        optimization: graph optimization level.
        threads: threads of one operation. Default: ONNX Runtime's choice.
        where: file of a model in memory, or the folder with its external data.
        settings: further entries of the session's configuration.
        leave_out: names of disabled optimizers.

    Raises:
        UsageError: the provider or level is unknown, the provider is not available here, or `threads` is out of range.
        FormatError: ONNX Runtime cannot open the graph.
    """
    row = provider_named(provider)
    devices = _devices(provider)
    if optimization not in _LEVELS:
        raise UsageError("unknown optimization level", found=f"`{optimization}`", expected=", ".join(_LEVELS))
    check_threads(threads)
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[optimization]
    # 0 lets ONNX Runtime choose
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # fatal: errors are raised, and each overridable initializer would log a warning
    if where is not None:
        folder = str((where if where.is_dir() else where.parent).resolve())
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if provider == "cpu":
        register_arena()
    shared = SHARED if provider == "cpu" else {}
    for key, value in {_SPINNING: "0", **shared, **(settings or {})}.items():
        options.add_session_config_entry(key, value)
    model, named = (graph, where) if isinstance(graph, bytes) else (str(graph), graph)
    left_out = [*leave_out, *_SLOW.get(provider, ())]
    without = {"disabled_optimizers": left_out} if left_out else {}

    def refusal(reason: str) -> FormatError:
        fix = f"try another release than onnxruntime {ort.__version__}"
        return FormatError("ONNX Runtime cannot open the graph", where=named, found=reason, fix=fix)

    with parsing(refusal):
        if devices:
            options.add_provider_for_devices(devices, dict(row.options))
            session = ort.InferenceSession(model, options, **without)
        else:
            session = ort.InferenceSession(model, options, providers=[(row.device, dict(row.options))], **without)
    if session.get_providers()[0] != row.device:  # ONNX Runtime falls back to the CPU and only logs it
        started = session.get_providers()[0]
        raise unavailable(provider, f"{row.device} does not start; the session would run on {started}")
    return session


def _devices(provider: ProviderName) -> Sequence[ort.OrtEpDevice]:
    """Return the device of a plugin, empty for providers of this build; UsageError if the provider is neither."""
    row, available = PROVIDERS[provider], ort.get_available_providers()
    if row.runtime == "onnxruntime" and row.device in available:
        return ()
    installed = f"onnxruntime {ort.__version__} with {', '.join(available)}"
    if row.plugin is None:
        raise unavailable(provider, installed)
    try:
        plugin = import_module(row.plugin)
        if row.device not in {device.ep_name for device in ort.get_ep_devices()}:
            ort.register_execution_provider_library(row.device, plugin.get_library_path())
    except _NO_PLUGIN as error:
        raise unavailable(provider, f"{installed}; {error}") from error
    devices = [device for device in ort.get_ep_devices() if device.ep_name == row.device]
    if not devices:
        raise unavailable(provider, f"`{row.plugin}` finds no device")
    return devices[:1]  # these plugins take one


def unavailable(provider: ProviderName, reason: str) -> UsageError:
    """Return the error of a provider that is not installed or does not start here."""
    row = PROVIDERS[provider]
    return UsageError(
        f"`{provider}` is not available here",
        found=reason,
        expected=row.device if row.runtime == "onnxruntime" else row.runtime,
        fix=f"install {row.install}, or run with `cpu`",
    )


def on_device(array: np.ndarray, memory: str = "cpu") -> ort.OrtValue:
    """Return an array where a session keeps it; on the CPU it is the array itself, not a copy."""
    return ort.OrtValue.ortvalue_from_numpy(array, memory, 0)


def run_session(
    session: ort.InferenceSession,
    feeds: Mapping[str, np.ndarray],
    outputs: Sequence[str] | None = None,
    *,
    options: ort.RunOptions | None = None,
) -> Arrays:
    """Compute outputs by name; RequestError if ONNX Runtime cannot compute these inputs.

    Args:
        session: runs the graph.
        feeds: the inputs, and tensors for overridable initializers.
        outputs: names. Default: all.
        options: the caller keeps their active adapter alive.
    """
    names = list(outputs or [output.name for output in session.get_outputs()])
    try:
        return dict(zip(names, session.run(names, dict(feeds), options), strict=True))
    except FAILURES as error:
        raise _named(error) from error


def run_values(
    session: ort.InferenceSession, feeds: Values, outputs: Sequence[str], options: ort.RunOptions | None = None
) -> Arrays:
    """Compute outputs by name from values that may be on a device; errors as of `run_session`."""
    try:
        values = session.run_with_ort_values(list(outputs), dict(feeds), options)
    except FAILURES as error:
        raise _named(error) from error
    return {name: value.numpy() for name, value in zip(outputs, values, strict=True)}


def run_bound(
    session: ort.InferenceSession, names: Sequence[str], feeds: Values, memory: str
) -> dict[str, ort.OrtValue]:
    """Compute outputs that stay on the device, by IO binding; values there are fed without a copy.

    ONNX Runtime ignores native adapters (`RunOptions.add_active_adapter`) here without an error: adapters are bound as
    the inputs that they are.
    """
    binding = session.io_binding()
    try:
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, memory, 0)
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


class OpenGraph(Protocol):
    """A graph that a runtime has opened. Thread-safe."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of the model."""

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> Arrays:
        """Compute outputs by name; RequestError if the runtime cannot compute these inputs."""

    def run_on_device(self, feeds: Feeds, outputs: Sequence[str]) -> dict[str, ort.OrtValue]:
        """Compute outputs that stay where the graph runs; errors as of `run`."""


@dataclass(frozen=True)
class OrtGraph:
    """A graph in a session of ONNX Runtime.

    Attributes:
        session: the session.
        memory: where tensors stay for several calls.
        shares_arena: whether it allocates from the arena of `arena.py`.
    """

    session: ort.InferenceSession
    memory: str = "cpu"
    shares_arena: bool = False

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of the model."""
        metadata: Mapping[str, str] = self.session.get_modelmeta().custom_metadata_map
        return metadata

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> Arrays:
        """Compute outputs by name; RequestError if ONNX Runtime cannot compute these inputs."""
        arrays = {name: value for name, value in feeds.items() if isinstance(value, np.ndarray)}
        options = options_of_next_call() if self.shares_arena else None
        if len(arrays) == len(feeds):  # takes less time than values
            return run_session(self.session, arrays, outputs, options=options)
        return run_values(self.session, _as_values(feeds, "cpu"), outputs, options)

    def run_on_device(self, feeds: Feeds, outputs: Sequence[str]) -> dict[str, ort.OrtValue]:
        """Compute outputs that stay on the device; errors as of `run`."""
        return run_bound(self.session, outputs, _as_values(feeds, self.memory), self.memory)


def _as_values(feeds: Feeds, memory: str) -> dict[str, ort.OrtValue]:
    return {name: on_device(value, memory) if isinstance(value, np.ndarray) else value for name, value in feeds.items()}


class Graphs:
    """The graphs of a bundle that a provider may run, opened by their paths when first needed. Thread-safe.

    The graph of calls with one adapter opens at once.

    Args:
        manifest: of the bundle.
        provider: runs the graphs.
        open_file: opens a graph by its path in the bundle.

    Attributes:
        main: variant of calls with one adapter; `bank` if the bundle has no other that the provider may run.

    Raises:
        UsageError: the bundle has no graph that the provider may run.
    """

    def __init__(self, manifest: Manifest, provider: ProviderName, open_file: Callable[[str], OpenGraph]) -> None:
        self.manifest = manifest
        self.provider: ProviderName = provider
        self.row: Provider = provider_named(provider)
        self._open_file = open_file
        self._sessions: dict[str, OpenGraph] = {}
        self._lock = Lock()
        mains = [variant for variant in self.row.variants if variant != "fanout"]
        self.main = next((variant for variant in mains if variant in manifest.graphs), None)
        if self.main is None:
            raise UsageError(
                f"the bundle has no graph that `{provider}` may run",
                found=quoted(manifest.graphs),
                expected=f"one of {quoted(mains)}",
                fix="build it with " + argument("variants", ["slots", *mains]) + ", or run with `cpu`",
            )
        self.session(self.main)

    def may_run(self, variant: VariantName) -> bool:
        """Return whether the bundle has a variant, and the provider may run it."""
        return variant in self.row.variants and variant in self.manifest.graphs

    def single(self) -> OpenGraph:
        """Return the graph that takes the tensors of one adapter; RequestError if there is none."""
        return self.session("slots" if self.may_run("slots") else "inputs")

    def session(self, variant: VariantName) -> OpenGraph:
        """Return the open graph of a variant.

        Raises:
            RequestError: the bundle does not have it, or the provider may not run it.
            FormatError: it is broken.
        """
        if variant not in self.row.variants:
            raise RequestError(
                f"`{self.provider}` may not run the graph `{variant}`: it would ignore the tensors of adapters",
                expected=quoted(self.row.variants),
                fix="run with `cpu`",
            )
        path = self.manifest.graphs.get(variant)
        if path is None:
            variants = argument("variants", list(dict.fromkeys(("slots", "inputs", variant))))
            missing = "rows of one batch through different adapters" if variant == "bank" else variant
            raise RequestError(
                f"the bundle has no graph for {missing}",
                found=quoted(self.manifest.graphs),
                expected=f"`{variant}`",
                fix="build it with " + variants + ", or give each call one `adapter`",
            )
        return self.open_path(path)

    def open_path(self, path: str) -> OpenGraph:
        """Return the open graph of a file of the bundle; FormatError if it is broken."""
        if path not in self._sessions:
            with self._lock:
                if path not in self._sessions:
                    self._sessions[path] = self._open_file(path)
        return self._sessions[path]

    @cached_property
    def neutral(self) -> Arrays:
        """The tensors of slots with which the graph `inputs` computes the base."""
        return {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in self.manifest.slots}

    def place(self, array: np.ndarray) -> np.ndarray | ort.OrtValue:
        """Return an array where the graphs run, to be fed in several calls; in the CPU's memory without a copy."""
        return array if self.row.runtime == "openvino" else on_device(array, self.row.memory)

    @property
    def in_place(self) -> bool:
        """True if arrays are fed as they are, without a copy to a device."""
        return self.row.memory == "cpu"
