"""External data: locations of an ONNX model's large weights, validated before they are read; models on disk.

All large weights of a bundle's graphs are in one file, which is hard-linked or written tensor by tensor.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_ir as ir

from adapter_export.errors import AdapterExportError, BaseModelError
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_bytes, sha256_of_part

WEIGHTS_FILE = "base.bin"

EMBEDDED_BYTES = 1024
"""Maximum bytes of tensors that stay in the graph's file."""

_LEAST_USED = 0.9
"""Minimum fraction of a file that a graph must use for the whole file to be linked."""


_PROTO_BYTES = 2**31 - 1
"""Maximum size of a protobuf message."""


def read_model(path: Path, refusal: Callable[[str], AdapterExportError]) -> ir.Model:
    """Read an ONNX file without its external data. Exceptions of its parsers become `refusal(reason)`.

    Raises:
        FileError: it is not a regular file, cannot be read, or is larger than any protobuf message.
    """
    data = read_bytes(path, _PROTO_BYTES)
    if not data:  # an empty file is a valid message
        raise refusal("0 bytes")
    with parsing(refusal):
        model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(data))
        ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def settle_external_data(model: ir.Model, path: Path) -> Path:
    """Validate the file of every external tensor, then make the tensor refer to that file without links.

    A model cache keeps a model and its data as symbolic links in one folder, which ONNX Runtime does not follow.
    Returns the folder that tensor locations are relative to afterwards: that of the model, or of the file it links to.

    Raises:
        BaseModelError: a file is missing, outside the model's folder, or too short.
    """
    values = list(_external_values(model))
    files = {}
    for _, tensor in values:
        _check_tensor(tensor, path)
        files[tensor.location] = (path.parent / tensor.location).resolve()
    candidates = (path.parent.resolve(), path.resolve().parent)
    holding = (each for each in candidates if all(file.is_relative_to(each) for file in files.values()))
    folder = next(holding, None)
    if folder is None:
        raise _outside(path, next(name for name, file in files.items() if not file.is_relative_to(candidates[0])))
    for value, tensor in values:
        location = files[tensor.location].relative_to(folder).as_posix()
        value.const_value = relocated(tensor, location, folder)
    return folder


def _check_tensor(tensor: ir.ExternalTensor, path: Path) -> None:
    file = path.parent / tensor.location
    if not Path(os.path.abspath(file)).is_relative_to(os.path.abspath(path.parent)):  # noqa: PTH100 `resolve` follows links
        raise _outside(path, tensor.location)
    if not file.is_file():
        raise BaseModelError(
            "is missing, but contains weights of the model",
            where=file,
            found="no such file",
            expected=f"the data of `{tensor.name}`",
            fix=f"put it in the folder of `{path.name}`",
        )
    needed = (tensor.offset or 0) + max(tensor.length or 0, tensor.nbytes)
    if file.stat().st_size < needed:
        raise BaseModelError(
            "is truncated",
            where=file,
            found=f"{file.stat().st_size} bytes",
            expected=f"at least {needed}, for `{tensor.name}`",
            fix="copy it again completely",
        )


def _outside(model: Path, location: str | os.PathLike[str]) -> BaseModelError:
    return BaseModelError(
        "has weights outside its folder",
        where=model,
        found=f"`{location}`",
        expected="files in the folder of the model",
        fix="save the model and its weights into one folder",
    )


def external_files(model: ir.Model, folder: Path) -> set[Path]:
    """Return the external data files of a settled model, whose locations are relative to `folder`."""
    return {(folder / tensor.location).resolve() for _, tensor in _external_values(model)}


def _external_values(model: ir.Model) -> Iterator[tuple[ir.Value, ir.ExternalTensor]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value, value.const_value


def sha256_of_tensor(tensor: ir.TensorProtocol) -> str:
    """Return the SHA-256 of the raw little-endian bytes as lower-case hexadecimal, streaming external data."""
    if not isinstance(tensor, ir.ExternalTensor):
        return hashlib.sha256(tensor.tobytes()).hexdigest()
    return sha256_of_part(Path(tensor.path), tensor.offset or 0, tensor.nbytes)


def readable(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a view of a validated tensor that reads its file.

    onnx-ir rejects files with several hard links, which package installers create.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return relocated(tensor, os.path.abspath(tensor.path), "")  # noqa: PTH100


def in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return the tensor in memory."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.Tensor(np.array(readable(tensor).numpy()), dtype=tensor.dtype, name=tensor.name)


def relocated(tensor: ir.ExternalTensor, location: str, folder: Path | str) -> ir.ExternalTensor:
    """Return the tensor with another path to its file."""
    facts = (tensor.offset, tensor.length, tensor.dtype)
    return ir.ExternalTensor(location, *facts, shape=tensor.shape, name=tensor.name, base_dir=folder)


def write_model(model: ir.Model, path: Path, *, copy_weights: bool = False) -> None:
    """Write a graph, and its base's weights to `base.bin` in the same folder; slots stay in the graph's file.

    If the weights are in one file on the same file system, `base.bin` becomes a hard link to it. Otherwise, and with
    `copy_weights`, they are streamed, so the base is never completely in memory. Afterwards, the model refers to
    `base.bin`.

    Raises:
        BaseModelError: the graph breaks a rule of ONNX.
    """
    overridable = {value.name for value in model.graph.inputs}
    weights = {
        value: value.const_value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None and value.name not in overridable
    }
    large = {
        value: tensor
        for value, tensor in weights.items()
        if tensor.dtype != ir.DataType.STRING and tensor.nbytes > EMBEDDED_BYTES
    }
    used = sum(tensor.nbytes for tensor in weights.values() if isinstance(tensor, ir.ExternalTensor))
    if copy_weights or not _link(large, used, path.with_name(WEIGHTS_FILE)):
        _stream(large, path.with_name(WEIGHTS_FILE))
    for value in weights.keys() - large.keys():
        value.const_value = in_memory(weights[value])
    ir.save(model, path)
    try:
        with _checkable(path) as file:
            onnx.checker.check_model(str(file))
    except onnx.checker.ValidationError as error:
        raise BaseModelError(
            "breaks a rule of ONNX",
            where=path.name,
            found=str(error).partition("\n")[0],
            fix="check the base with `onnx.checker`; if it passes, report this",
        ) from error


def join_weights(model: ir.Model, path: Path) -> bool:
    """Write the external data of a model from any number of files into one file, which the model then refers to.

    Returns false, and writes nothing, if the model has no external data.
    """
    external = dict(_external_values(model))
    if external:
        _stream(external, path)
    return bool(external)


def _stream(tensors: Mapping[ir.Value, ir.TensorProtocol], path: Path) -> None:
    """Write tensors to a file one at a time, and make their values refer to it."""
    read = [readable(tensor) for tensor in tensors.values()]
    written = ir.external_data.convert_tensors_to_external(read, path.parent, path.name)
    for value, external in zip(tensors, written, strict=True):
        value.const_value = external


def is_large(model: ir.Model) -> bool:
    """Return whether the weights of a model take a gigabyte or more, so that each run takes seconds."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None) >= 2**30


def bytes_with_weights(path: Path, model: ir.Model) -> int:
    """Return the bytes of a graph's file and of the files of its external weights."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    files = {Path(tensor.path).resolve() for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    return sum(file.stat().st_size for file in {path.resolve(), *files})


def _link(weights: Mapping[ir.Value, ir.TensorProtocol], used: int, target: Path) -> bool:
    """Create a hard link to the file with the weights; return false if that is impossible or most of it is unused."""
    external = {value: tensor for value, tensor in weights.items() if isinstance(tensor, ir.ExternalTensor)}
    files = {Path(tensor.path).resolve() for tensor in external.values()}
    if len(external) < len(weights) or len(files) != 1:
        return False
    file = files.pop()
    if used < _LEAST_USED * file.stat().st_size:
        return False
    try:
        os.link(file, target)
    except OSError:  # another file system, no support for hard links, or another owner
        return False
    for value, tensor in external.items():
        value.const_value = relocated(tensor, WEIGHTS_FILE, target.parent)
    return True


@contextmanager
def _checkable(path: Path) -> Iterator[Path]:
    """Yield a copy of the graph in which every operator is in its correct domain.

    ONNX Runtime registers some of its operators in the standard domain (`SimplifiedLayerNormalization`), and tools use
    that. A sparse file of the weights' size accompanies it, because the checker rejects files with several hard links.
    """
    model = onnx.load(path, load_external_data=False)
    runtime_nodes = [node for node in model.graph.node if not node.domain and not onnx.defs.has(node.op_type)]
    for node in runtime_nodes:
        node.domain = "com.microsoft"
    if runtime_nodes and all(known.domain != "com.microsoft" for known in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    weights = path.with_name(WEIGHTS_FILE)
    with TemporaryDirectory(prefix=".check-", dir=path.parent) as folder:
        if weights.exists():
            with (Path(folder) / WEIGHTS_FILE).open("wb") as hole:
                hole.truncate(weights.stat().st_size)
        onnx.save(model, Path(folder) / path.name)
        yield Path(folder) / path.name
