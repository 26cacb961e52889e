"""ONNX Runtime's own adapter files, `.onnx_adapter`: written here, read by every binding that knows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from adapter_export.dtypes import Weights
from adapter_export.errors import WriteError
from adapter_export.onnx.session import FAILURES

_ADAPTER_VERSION = 1
"""ONNX Runtime compares it with nothing, nor the version of the model."""


def write_adapter_file(path: Path, tensors: Weights, model_version: int) -> None:
    """Write an adapter file, and read it again to see that all of it arrived.

    Args:
        path: where.
        tensors: one for every slot of the graph.
        model_version: that of the graph, as `identity.model_version` gives it.

    Raises:
        WriteError: the file could not be written as a whole.
    """
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(_ADAPTER_VERSION)
    adapter.set_model_version(model_version)
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(tensors[name]) for name in sorted(tensors)})
    try:
        adapter.export_adapter(str(path))
        written = ort.AdapterFormat.read_adapter(str(path))  # its values point into it, so it must outlive them
    except FAILURES as error:
        raise WriteError(path, str(error).partition("\n")[0]) from error
    if written.get_model_version() != model_version or not _same(written.get_parameters(), tensors):
        raise WriteError(path, "what was written is not what is there")


def _same(written: Mapping[str, ort.OrtValue], tensors: Weights) -> bool:
    return written.keys() == tensors.keys() and all(
        np.array_equal(value.numpy(), tensors[name]) for name, value in written.items()
    )
