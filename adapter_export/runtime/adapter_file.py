"""ONNX Runtime's adapter files, `.onnx_adapter`: written by ONNX Runtime, read here.

The layout is the flatbuffer `onnxruntime/lora/adapter_format/adapter_schema.fbs`. ONNX Runtime maps the file, so
overwriting it changes the weights of a live session, and before 1.24.3 it reads past the end of a crafted file. This
reader checks every tensor against the size of a copy.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
from flatbuffers import encode, number_types
from flatbuffers.table import Table

from adapter_export.dtypes import AdapterPrecision, Weights, narrowed, widened
from adapter_export.errors import FormatError, TensorError, WriteError
from adapter_export.runtime.graphs import FAILURES
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_bytes

_IDENTIFIER = b"TORT"
_FORMAT_VERSION = 1
_TYPES: dict[int, np.dtype[np.generic]] = {1: np.dtype("<f4"), 3: np.dtype("i1"), 10: np.dtype("<f2")}
"""Tensor types by their ONNX numbers: float32, int8 and float16."""

# Offset of each field in the vtable: 4 bytes of sizes, then 2 bytes per field.
_FORMAT, _MODEL_VERSION, _PARAMETERS = 4, 8, 10
_NAME, _DIMS, _DATA_TYPE, _RAW_DATA = 4, 6, 8, 10


def write_adapter_file(
    path: Path, tensors: Weights, model_version: int, precision: AdapterPrecision = "float32"
) -> None:
    """Write a tensor for every slot and the graph's `model_version`; WriteError if reading it back fails.

    ONNX Runtime itself can only activate float32 files.
    """
    stored = narrowed(tensors, precision)
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)  # ONNX Runtime ignores both versions
    adapter.set_model_version(model_version)
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(stored[name]) for name in sorted(stored)})
    try:
        adapter.export_adapter(str(path))
    except FAILURES as error:
        raise WriteError(path, str(error).partition("\n")[0]) from error
    data = read_bytes(path)
    try:
        written, version = parse_adapter(data, path), model_version_of(data, path)
    except FormatError as error:
        raise WriteError(path, error.what) from error
    same = written.keys() == tensors.keys() and all(np.array_equal(written[name], tensors[name]) for name in tensors)
    if version != model_version or not same:
        raise WriteError(path, "the file differs from the written data")


Bytes = bytes | mmap.mmap

Place = tuple[int, tuple[int, ...], np.dtype[np.generic]]
"""Byte offset, shape and type of a tensor in an adapter file."""

Places = Mapping[str, Place]


def parse_adapter(data: Bytes, where: object) -> Weights:
    """Return the float32 tensors of an adapter file, by name; errors as of `find_tensors` and `widened`.

    Float32 tensors of the file are read-only views of its bytes.
    """
    return tensors_at(data, find_tensors(data, where), where)


def tensors_at(data: Bytes, places: Places, where: object = None) -> Weights:
    """Return the float32 tensors at known places of a file, as `parse_adapter` does."""
    views = {name: np.ndarray(shape, dtype, data, start) for name, (start, shape, dtype) in places.items()}
    native = {
        name: view
        if view.flags.aligned and view.dtype.isnative
        else np.require(view, view.dtype.newbyteorder("="), "A")
        for name, view in views.items()
    }
    return widened(native, where)


def find_tensors(data: Bytes, where: object) -> Places:
    """Return the places of the tensors in an adapter file; `where` is its name in messages.

    Raises:
        FormatError: it is not an adapter file, is truncated or damaged, or has another format version.
        TensorError: a name is duplicate, a type is unsupported, or a size does not match its shape.
    """
    # the identifier of a flatbuffer follows the offset of its root table
    if data[4:8] != _IDENTIFIER:
        raise FormatError(
            "is not an ONNX Runtime adapter file",
            where=where,
            found=f"{len(data)} bytes that start with `{data[:8]!r}`",
            expected="`TORT` at byte 4",
            fix="pass a file written by `build` or `onnxruntime.AdapterFormat`",
        )
    with parsing(partial(_damaged, where)):
        root = _root(data)
        version = root.GetSlot(_FORMAT, 0, number_types.Int32Flags)
        if version != _FORMAT_VERSION:
            raise FormatError("has an unknown format version", where=where, found=version, expected=_FORMAT_VERSION)
        tensors: dict[str, Place] = {}
        place = root.Offset(_PARAMETERS)
        for index in range(root.VectorLen(place) if place else 0):
            start = root.Vector(place) + index * number_types.UOffsetTFlags.bytewidth
            name, tensor = _parameter(Table(data, root.Indirect(start)), where)
            if name in tensors:
                raise TensorError("contains two tensors of one name", where=where, found=f"`{name}`")
            tensors[name] = tensor
        return tensors


def model_version_of(data: Bytes, where: object) -> int:
    """Return the `model_version` in an adapter file, which identifies its graph.

    Raises:
        FormatError: the offset of the version is outside of the file.
    """
    with parsing(partial(_damaged, where)):
        return int(_root(data).GetSlot(_MODEL_VERSION, 0, number_types.Int32Flags))


def _damaged(where: object, reason: str) -> FormatError:
    fix = "download or build the file again"
    return FormatError("is truncated or damaged", where=where, found=reason, fix=fix)


def _root(data: Bytes) -> Table:
    return Table(data, encode.Get(number_types.UOffsetTFlags.packer_type, data, 0))


def _parameter(table: Table, where: object) -> tuple[str, Place]:
    # read as a vector of bytes, since only vectors are checked against the end of the file
    name = table.GetVectorAsNumpy(number_types.Uint8Flags, _place(table, _NAME)).tobytes().decode()
    dims = tuple(int(dim) for dim in table.GetVectorAsNumpy(number_types.Int64Flags, _place(table, _DIMS)))
    raw = table.GetVectorAsNumpy(number_types.Uint8Flags, _place(table, _RAW_DATA))
    kind = table.GetSlot(_DATA_TYPE, 0, number_types.Int32Flags)
    if kind not in _TYPES:
        actual, expected = f"`{name}` of type {kind}", "1 (float32), 10 (float16) or 3 (int8)"
        raise TensorError("contains a tensor of an unsupported type", where=where, found=actual, expected=expected)
    if min(dims, default=0) < 1 or math.prod(dims) * _TYPES[kind].itemsize != raw.nbytes:
        raise TensorError(
            "contains a tensor whose size does not match its shape",
            where=where,
            found=f"`{name}` {list(dims)} in {raw.nbytes} bytes",
            expected=f"at least 1 along each axis, {_TYPES[kind].itemsize} bytes for each element",
        )
    return name, (table.Vector(_place(table, _RAW_DATA)), dims, _TYPES[kind])


def _place(table: Table, field: int) -> int:
    place = int(table.Offset(field))
    if not place:
        raise IndexError("a tensor without name, shape or data")
    return place
