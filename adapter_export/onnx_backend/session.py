"""Sessions of ONNX Runtime on models in memory whose weights lie in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from adapter_export.errors import BaseModelError, RequestError

FAILURES: tuple[type[Exception], ...] = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NotImplemented,
    state.RuntimeException,
    RuntimeError,
    ValueError,  # a missing input
)
"""What ONNX Runtime raises when a model or a call is not to its liking."""

_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
_NO_PACKING_KEY = "session.disable_prepacking"
_SPINNING_KEY = "session.intra_op.allow_spinning"
_PACKED_BYTES = 128 * 2**20
"""The most weights of which ONNX Runtime may make a second copy, in the order that suits its kernels."""

_FATAL_ONLY = 4
"""What goes wrong is raised, and need not be logged; a session warns of each overridable initializer otherwise."""


def open_session(model: ir.Model, folder: Path, *, optimize: bool = True, pack: bool = True) -> ort.InferenceSession:
    """Open a model on the CPU.

    Large weights are mapped from their file, not read: they stay what the operating system can take out of memory.

    Args:
        model: the model; its external data are not read here.
        folder: where its external data lie.
        optimize: whether ONNX Runtime may rewrite the graph.
        pack: whether it may copy weights into the order that suits its kernels, which many runs are worth; quantised
            ones are copied in any case.

    Raises:
        BaseModelError: ONNX Runtime refuses it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    if not pack:
        options.add_session_config_entry(_SPINNING_KEY, "0")
    options.add_session_config_entry(_FOLDER_KEY, str(folder.resolve()))
    if not _is_quantised(model) and (not pack or _has_large_weights(model)):
        options.add_session_config_entry(_NO_PACKING_KEY, "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        data = ir.to_proto(model).SerializeToString()
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except FAILURES as error:
        raise BaseModelError(
            "ONNX Runtime cannot open the graph",
            where=folder,
            found=str(error).partition("\n")[0],
            fix="open the base itself with ONNX Runtime; if that fails too, export it again",
        ) from error


def _has_large_weights(model: ir.Model) -> bool:
    return sum(tensor.nbytes for tensor in _external_tensors(model)) > _PACKED_BYTES


def _is_quantised(model: ir.Model) -> bool:
    """Quantised weights compute something else when they are not packed."""
    return any(tensor.dtype.itemsize <= 1 and tensor.dtype != ir.DataType.BOOL for tensor in _external_tensors(model))


def _external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]


def run_session(
    session: ort.InferenceSession,
    feeds: Mapping[str, np.ndarray],
    outputs: list[str] | None = None,
    *,
    options: ort.RunOptions | None = None,
) -> dict[str, np.ndarray]:
    """Run once; outputs by name.

    Args:
        session: the session.
        feeds: the inputs, and tensors for overridable initializers.
        outputs: which outputs; all of them if not given.
        options: such as an active adapter; the caller keeps the adapter alive.

    Raises:
        RequestError: ONNX Runtime cannot compute these inputs.
    """
    names = outputs or [output.name for output in session.get_outputs()]
    try:
        values = session.run(names, dict(feeds), options)
    except FAILURES as error:
        raise RequestError(
            "ONNX Runtime cannot compute these inputs",
            found=str(error).partition("\n")[0],
            fix="check names, shapes and values against the inputs of the base",
        ) from error
    return dict(zip(names, values, strict=True))
