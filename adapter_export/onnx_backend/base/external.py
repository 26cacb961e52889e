"""External data: where the large weights of an ONNX model lie, checked before they are read; models on disk.

On disk all large weights of a bundle's graphs are in one file, linked as it is or written tensor by tensor.
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
"""Smaller tensors stay in the graph's own file."""

_LEAST_USED = 0.9
"""The share of a file that a graph must use for the file to be linked as a whole."""


_PROTO_BYTES = 2**31 - 1
"""The largest message of protobuf."""


def read_model(path: Path, refusal: Callable[[str], AdapterExportError]) -> ir.Model:
    """Read an ONNX file; external data are not read. What its parsers raise becomes `refusal(reason)`.

    Raises:
        FileError: it is no regular file, cannot be read, or is larger than any message of protobuf.
    """
    data = read_bytes(path, _PROTO_BYTES)
    if not data:  # a valid message
        raise refusal("0 bytes")
    with parsing(refusal):
        model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(data))
        ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def settle_external_data(model: ir.Model, path: Path) -> Path:
    """Compare every external tensor with the file that it names, then let it name that file without links.

    A model cache keeps a model and its data as links into one folder, which ONNX Runtime does not follow. Returns the
    folder to which the tensors' locations are relative from now on: that of the model, or of the file that it links to.
    `BaseModelError`: a file is missing, lies outside of the model's folder, or is too short.
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


def sha256_of_tensor(tensor: ir.TensorProtocol) -> str:
    """The sha256 of the raw little-endian bytes, in lower-case hexadecimal, without holding external data in memory."""
    if not isinstance(tensor, ir.ExternalTensor):
        return hashlib.sha256(tensor.tobytes()).hexdigest()
    return sha256_of_part(Path(tensor.path), tensor.offset or 0, tensor.nbytes)


def readable(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A view of a checked tensor that reads its file.

    onnx-ir itself refuses files with several hard links, such as package installers make.
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
    """Write a graph, and the weights of its base beside it in `base.bin`; the slots stay in the graph's file.

    Where the weights lie in one file on the same file system, `base.bin` is one more name of that file (a hard link).
    Otherwise, and with `copy_weights`, they are streamed: not the whole base is in memory at any time. The model refers
    to `base.bin` afterwards. `BaseModelError`: the graph breaks a rule of ONNX.
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
    """Write the external data of a model, however many files it is in, into one file, which the model then refers to.

    Returns false, and writes nothing, if the model has no external data.
    """
    external = dict(_external_values(model))
    if external:
        _stream(external, path)
    return bool(external)


def _stream(tensors: Mapping[ir.Value, ir.TensorProtocol], path: Path) -> None:
    """Write tensors to a file, one at a time, and let their values refer to it."""
    read = [readable(tensor) for tensor in tensors.values()]
    written = ir.external_data.convert_tensors_to_external(read, path.parent, path.name)
    for value, external in zip(tensors, written, strict=True):
        value.const_value = external


def is_large(model: ir.Model) -> bool:
    """Return whether the weights of a model take a gigabyte or more, so that each run of it takes seconds."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None) >= 2**30


def bytes_with_weights(path: Path, model: ir.Model) -> int:
    """Return the bytes of a graph's file and of the files of its external weights."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    files = {Path(tensor.path).resolve() for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    return sum(file.stat().st_size for file in {path.resolve(), *files})


def _link(weights: Mapping[ir.Value, ir.TensorProtocol], used: int, target: Path) -> bool:
    """Give the file that holds the weights one more name; false where that cannot be, or most of it is not used."""
    external = {value: tensor for value, tensor in weights.items() if isinstance(tensor, ir.ExternalTensor)}
    files = {Path(tensor.path).resolve() for tensor in external.values()}
    if len(external) < len(weights) or len(files) != 1:
        return False
    file = files.pop()
    if used < _LEAST_USED * file.stat().st_size:
        return False
    try:
        os.link(file, target)
    except OSError:  # another file system, one without hard links, or a file that is not the user's
        return False
    for value, tensor in external.items():
        value.const_value = relocated(tensor, WEIGHTS_FILE, target.parent)
    return True


@contextmanager
def _checkable(path: Path) -> Iterator[Path]:
    """Yield a copy of the graph in which every operator is in the domain that it belongs to.

    ONNX Runtime has operators of its own in the standard domain (`SimplifiedLayerNormalization`), and tools write them.
    Beside it lies a file of the size of the weights: the checker refuses files with several hard links.
    """
    model = onnx.load(path, load_external_data=False)
    own = [node for node in model.graph.node if not node.domain and not onnx.defs.has(node.op_type)]
    for node in own:
        node.domain = "com.microsoft"
    if own and all(known.domain != "com.microsoft" for known in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    weights = path.with_name(WEIGHTS_FILE)
    with TemporaryDirectory(prefix=".check-", dir=path.parent) as folder:
        if weights.exists():
            with (Path(folder) / WEIGHTS_FILE).open("wb") as hole:
                hole.truncate(weights.stat().st_size)
        onnx.save(model, Path(folder) / path.name)
        yield Path(folder) / path.name
