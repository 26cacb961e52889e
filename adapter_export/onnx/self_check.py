"""A new bundle proves itself: ONNX Runtime opens it and gives what the golden vectors say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from adapter_export.format.manifest import AdapterRecord, Manifest
from adapter_export.format.tensors import read_tensors
from adapter_export.onnx.golden import Golden
from adapter_export.onnx.session import open_session, run_session
from adapter_export.reference.runner import Arrays

Compute = Callable[[Mapping[str, np.ndarray]], Arrays]


def self_check(folder: Path, manifest: Manifest, vectors: Mapping[str | None, Golden]) -> None:
    """Run the base and every adapter, each by both of its files, on the golden vectors.

    Args:
        folder: the bundle.
        manifest: its manifest.
        vectors: the golden vectors by adapter; none stands for the base.

    Raises:
        ParityError: an output deviates by more than is allowed.
        BaseModelError: ONNX Runtime cannot open the graph.
    """
    model = ir.load(folder / manifest.graphs["slots"])
    session = open_session(model, folder)
    vectors[None].verify(lambda inputs: run_session(session, inputs), "no adapter")
    for record in manifest.adapters:
        golden = vectors[record.name]
        golden.verify(_by_native_file(session, folder, record), f"adapter `{record.name}`")
        golden.verify(_by_tensors(session, folder, record), f"adapter `{record.name}` as plain tensors")


def _by_native_file(session: ort.InferenceSession, folder: Path, record: AdapterRecord) -> Compute:
    adapter = ort.LoraAdapter()
    adapter.Load(str(folder / record.onnx_adapter))

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        options = ort.RunOptions()
        options.add_active_adapter(adapter)  # `options` does not keep the adapter alive; this closure does
        return run_session(session, inputs, options=options)

    return run


def _by_tensors(session: ort.InferenceSession, folder: Path, record: AdapterRecord) -> Compute:
    tensors = read_tensors(folder / record.safetensors)
    return lambda inputs: run_session(session, {**inputs, **tensors})
