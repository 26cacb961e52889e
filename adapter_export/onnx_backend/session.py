"""Sessions on models in memory whose weights lie in a folder."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from adapter_export.errors import BaseModelError, FormatError
from adapter_export.runtime import graphs

_PACKED_BYTES = 128 * 2**20
"""The most weights of which ONNX Runtime may make a second copy, in the order that suits its kernels."""


def open_session(model: ir.Model, folder: Path, *, optimize: bool = True, pack: bool = True) -> ort.InferenceSession:
    """Open a model on the CPU.

    Large weights are mapped from their file, not read: they stay what the operating system can take out of memory.
    With `optimize` ONNX Runtime may rewrite the graph. With `pack` it may copy weights into the order that suits its
    kernels, which many runs are worth; quantised ones, which compute something else when they are not packed, are
    copied in any case. `BaseModelError` if ONNX Runtime refuses the model.
    """
    values = (value.const_value for value in model.graph.initializers.values())
    tensors = [tensor for tensor in values if isinstance(tensor, ir.ExternalTensor)]
    quantised = any(tensor.dtype.itemsize <= 1 and tensor.dtype != ir.DataType.BOOL for tensor in tensors)
    large = sum(tensor.nbytes for tensor in tensors) > _PACKED_BYTES
    settings = {} if pack else {"session.intra_op.allow_spinning": "0"}
    if not quantised and (large or not pack):
        settings["session.disable_prepacking"] = "1"
    level: graphs.Optimization = "all" if optimize else "none"
    try:
        data = ir.to_proto(model).SerializeToString()
        return graphs.open_session(data, optimization=level, folder=folder, settings=settings)
    except (FormatError, ValueError) as error:  # a model of 2 GiB and more has no bytes
        raise BaseModelError(
            "ONNX Runtime cannot open the graph",
            where=folder,
            found=error.found if isinstance(error, FormatError) else str(error).partition("\n")[0],
            fix="open the base itself with ONNX Runtime; if that fails too, export it again",
        ) from error
