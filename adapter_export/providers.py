"""Providers as a table: one row for each device or runtime that computes a bundle's graphs.

Importing it loads no library, so that help pages can list the names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from adapter_export.errors import UsageError

ProviderName = Literal["cpu", "cuda", "openvino", "tensorrt", "rocm", "dml", "coreml", "webgpu", "qnn"]
"""The provider's name in options."""

Runtime = Literal["onnxruntime", "openvino"]

SwappingVariant = Literal["slots", "inputs", "bank", "fanout"]
"""A graph variant through which a session swaps adapters."""

Budget = Literal["recorded bits", "golden vectors"]
"""Measure of a session: the recorded bits where the release matches, and otherwise golden vectors with their budget; or
always golden vectors, on devices whose bits nothing records."""


@dataclass(frozen=True)
class Provider:
    """A row of the table. The defaults are the cautious ones.

    Attributes:
        device: execution provider of ONNX Runtime, or device of OpenVINO.
        install: packages that provide it.
        runtime: library that opens the graphs.
        options: the library's options for the device. Products keep all bits of float32 where an option controls that.
        plugin: module of a plugin for ONNX Runtime with `get_library_path`, where the device is in no build of it.
        variants: graph variants that it may run, in order of preference. A row without `slots` receives no tensor for
            an initializer: compilers of graphs fold initializers, and ignore such tensors without an error.
        budget: measure of its results.
        proved: compare golden data when a session opens, before its first answer.
        processor: where it computes. Calls on other processors than the CPU are larger, as each has a fixed cost.
        memory: where ONNX Runtime keeps tensors that stay for several calls.
    """

    device: str
    install: str
    runtime: Runtime = "onnxruntime"
    options: Mapping[str, str] = field(default_factory=dict)
    plugin: str | None = None
    variants: tuple[SwappingVariant, ...] = ("inputs", "bank")
    budget: Budget = "golden vectors"
    proved: bool = True
    processor: Literal["cpu", "gpu", "npu"] = "gpu"
    memory: Literal["cpu", "cuda"] = "cpu"

    @property
    def overrides(self) -> bool:
        """True if tensors fed for initializers replace them."""
        return "slots" in self.variants


_SWAPS_INITIALIZERS: tuple[SwappingVariant, ...] = ("slots", "inputs", "bank", "fanout")

PROVIDERS: Mapping[ProviderName, Provider] = {
    "cpu": Provider(
        "CPUExecutionProvider",
        "onnxruntime",
        variants=_SWAPS_INITIALIZERS,
        budget="recorded bits",
        proved=False,
        processor="cpu",
    ),
    "cuda": Provider(
        "CUDAExecutionProvider",
        "onnxruntime-gpu, and the CUDA libraries that it names",
        # TF32 keeps 10 bits of each factor: products would be off by 1e-3 without an error
        options={"use_tf32": "0"},
        variants=_SWAPS_INITIALIZERS,
        proved=False,
        memory="cuda",
    ),
    # OpenVINO's own runtime: ONNX Runtime's provider of that name ignores tensors fed for initializers
    "openvino": Provider(
        "CPU",
        "adapter-export[openvino]",
        "openvino",
        options={
            "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 on processors with AMX
            "EXECUTION_MODE_HINT": "ACCURACY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # activations beside compressed weights keep their bits
        },
        processor="cpu",
    ),
    # TensorRT multiplies in TF32 unless the process sets NVIDIA_TF32_OVERRIDE=0: microsoft/onnxruntime#26029
    "tensorrt": Provider("TensorrtExecutionProvider", "onnxruntime-gpu, and TensorRT", memory="cuda"),
    "rocm": Provider("MIGraphXExecutionProvider", "onnxruntime-migraphx, and ROCm"),
    "dml": Provider("DmlExecutionProvider", "onnxruntime-directml, on Windows"),
    "coreml": Provider(
        "CoreMLExecutionProvider",
        "onnxruntime, on macOS",
        options={"ModelFormat": "MLProgram", "AllowLowPrecisionAccumulationOnGPU": "0"},
        processor="npu",
    ),
    "webgpu": Provider("WebGpuExecutionProvider", "onnxruntime-ep-webgpu", plugin="onnxruntime_ep_webgpu"),
    # the accelerator of the chip computes in float16 or integers at best
    "qnn": Provider("QNNExecutionProvider", "onnxruntime-qnn", plugin="onnxruntime_qnn", processor="npu"),
}


def provider_names(chosen: Sequence[str]) -> tuple[ProviderName, ...]:
    """Return names of the table, `all` being each of them; UsageError if the table lacks one."""
    for name in chosen:
        if name != "all":
            provider_named(name)
    return tuple(name for name in PROVIDERS if name in chosen or "all" in chosen)


def provider_named(name: str) -> Provider:
    """Return a row; UsageError if the table has no such name."""
    for known, provider in PROVIDERS.items():
        if known == name:
            return provider
    raise UsageError("unknown provider", found=f"`{name}`", expected=", ".join(PROVIDERS))


MOST_THREADS = 1024
"""Maximum threads of one operation; more than any processor has cores for."""


def check_threads(threads: int | None) -> None:
    """Raise `UsageError` unless the number of threads is from 1 to `MOST_THREADS`, or `None`."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(
            "`threads` is out of range",
            found=f"{threads:,}",
            expected=f"1 to {MOST_THREADS:,}",
            fix="pass at most the number of processor cores",
        )
