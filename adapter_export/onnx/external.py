"""External data: where the large weights of an ONNX model lie, checked before they are read, copied without memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.format.files import sha256_of_part


def settle_external_data(model: ir.Model, path: Path) -> Path:
    """Hold every external tensor against the file that it names, then let it name that file without links.

    A model cache keeps a model and its data as links into one folder, which ONNX Runtime does not follow.

    Returns:
        The folder to which the tensors' locations are relative from now on.

    Raises:
        BaseModelError: a file is missing, lies outside of the model's folder, or is too short.
    """
    values = list(_external_values(model))
    files = {}
    for _, tensor in values:
        _check(tensor, path)
        files[tensor.location] = (path.parent / tensor.location).resolve()
    folder = _folder(path, files)
    for value, tensor in values:
        location = files[tensor.location].relative_to(folder).as_posix()
        value.const_value = relocated(tensor, location, folder)
    return folder


def _check(tensor: ir.ExternalTensor, path: Path) -> None:
    file = path.parent / tensor.location
    if not Path(os.path.abspath(file)).is_relative_to(os.path.abspath(path.parent)):  # noqa: PTH100 `resolve` follows links
        raise _outside(path, tensor.location)
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


def _folder(path: Path, files: Mapping[str | os.PathLike[str], Path]) -> Path:
    """The folder of the model, or of the file that the model is a link to, in which all data lie."""
    candidates = (path.parent.resolve(), path.resolve().parent)
    for folder in candidates:
        if all(file.is_relative_to(folder) for file in files.values()):
            return folder
    raise _outside(path, next(name for name, file in files.items() if not file.is_relative_to(candidates[0])))


def _outside(model: Path, location: str | os.PathLike[str]) -> BaseModelError:
    return BaseModelError(
        "keeps weights outside of its folder",
        where=model,
        found=f"`{location}`",
        expected="files in the folder of the model",
        fix="save the model and its weights into one folder",
    )


def external_files(model: ir.Model, folder: Path) -> set[Path]:
    """The files with the external data of a settled model, whose locations are relative to `folder`."""
    return {(folder / tensor.location).resolve() for _, tensor in _external_values(model)}


def _external_values(model: ir.Model) -> Iterator[tuple[ir.Value, ir.ExternalTensor]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value, value.const_value


def tensor_bytes(tensor: ir.TensorProtocol) -> bytes:
    """The raw little-endian bytes of a tensor."""
    return readable(tensor).tobytes()


def sha256_of_tensor(tensor: ir.TensorProtocol) -> str:
    """The sha256 of `tensor_bytes`, in lower-case hexadecimal, without holding external data in memory.

    Raises:
        FileError: the file with the data cannot be read.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return hashlib.sha256(tensor_bytes(tensor)).hexdigest()
    return sha256_of_part(Path(tensor.path), tensor.offset or 0, tensor.nbytes)


def readable(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A view of a checked tensor that reads its file.

    onnx-ir itself refuses files with several hard links, such as package installers make.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return relocated(tensor, os.path.abspath(tensor.path), "")  # noqa: PTH100


def relocated(tensor: ir.ExternalTensor, location: str, folder: Path | str) -> ir.ExternalTensor:
    """The same tensor, found by another path."""
    return ir.ExternalTensor(
        location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        base_dir=folder,
    )
