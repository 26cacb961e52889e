"""External data: where the large weights of an ONNX model lie, checked before they are read, copied without memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from adapter_export.errors import BaseModelError


def check_external_data(model: ir.Model, path: Path) -> None:
    """Hold every external tensor against the file that it names.

    Links are followed: a model cache keeps the model and its data as links into one folder.

    Raises:
        BaseModelError: a file is missing, lies outside of the model's folder, or is too short.
    """
    for tensor in external_tensors(model):
        file = path.parent / tensor.location
        if not _is_inside(file, path):
            raise _outside(path, tensor)
        if not file.is_file():
            raise BaseModelError(
                "is missing, and the model keeps weights in it",
                where=file,
                found="no such file",
                expected=f"the data of `{tensor.name}`",
                fix=f"put it beside `{path.name}`",
            )
        needed = (tensor.offset or 0) + max(tensor.length or 0, tensor.nbytes)
        if file.stat().st_size < needed:
            raise BaseModelError(
                "is truncated",
                where=file,
                found=f"{file.stat().st_size} bytes",
                expected=f"at least {needed}, for `{tensor.name}`",
                fix="copy it again as a whole",
            )


def _is_inside(file: Path, model: Path) -> bool:
    """Whether a file lies in the model's folder, as it is written and as the links in it lead."""
    written = Path(os.path.abspath(file))  # noqa: PTH100 `resolve` would follow links
    folders = (model.parent.resolve(), model.resolve().parent)
    return written.is_relative_to(os.path.abspath(model.parent)) and any(  # noqa: PTH100
        file.resolve().is_relative_to(folder) for folder in folders
    )


def _outside(model: Path, tensor: ir.ExternalTensor) -> BaseModelError:
    return BaseModelError(
        "keeps weights outside of its folder",
        where=model,
        found=f"`{tensor.location}` for `{tensor.name}`",
        expected="files in the folder of the model",
        fix="save the model and its weights into one folder",
    )


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every external tensor of the model, those of subgraphs included."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def tensor_bytes(tensor: ir.TensorProtocol) -> bytes:
    """The raw little-endian bytes of a tensor."""
    return readable(tensor).tobytes()


def readable(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A view of a checked tensor that reads its file.

    onnx-ir itself refuses files with several hard links, such as package installers make.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.ExternalTensor(
        os.path.abspath(tensor.path),  # noqa: PTH100
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        base_dir="",
    )
