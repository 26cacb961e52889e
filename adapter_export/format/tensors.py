"""Safetensors files with a deterministic layout and errors of this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import deserialize
from safetensors.numpy import save

from adapter_export.errors import FormatError, TensorError, WriteError
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_bytes

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""NumPy's names of the safetensors element types that it supports."""

_BFLOAT16 = "BF16"

_HEADER_LENGTH_BYTES = 8

_MOST_TENSORS = 100_000
"""Maximum number of tensors in a file; more would take seconds to read."""

_MOST_AXES = 32
"""Maximum number of axes, the limit of the oldest supported NumPy."""

_MISTAKEN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it points to", "run `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive, such as `torch.save` writes", "save the tensors with `safetensors`"),
    (b"\x80", "a pickle, which could run code when it is read", "save the tensors with `safetensors`"),
    (b"\x89HDF", "an HDF5 file", "save the tensors with `safetensors`"),
    (b"\x93NUMPY", "a NumPy file", "save the tensors with `safetensors`"),
)
"""First bytes of other formats, with name and fix. A safetensors file starts with the length of its header, which may
equal the first byte of a pickle; the `{` of the header at byte 8 distinguishes them."""


def tensor_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return the canonical safetensors encoding: sorted by element size (largest first), then name; no metadata.

    Raises:
        TensorError: safetensors does not support the type of a tensor.
    """
    ordered = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    allowed = _DTYPES.values()
    faults = [f"`{name}` is {tensor.dtype}" for name, tensor in ordered.items() if tensor.dtype.name not in allowed]
    if faults:
        raise TensorError("tensors of an unsupported type", found="; ".join(faults), expected=", ".join(_DTYPES))
    return save(ordered)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file; the bytes are deterministic.

    Raises:
        TensorError: safetensors does not support the type of a tensor.
        WriteError: the operating system refused a write.
    """
    data = tensor_bytes(tensors)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise WriteError(path, error.strerror or error) from error


def read_tensors(path: Path, *, widen: bool = False) -> dict[str, np.ndarray]:
    """Read all tensors of a safetensors file; `widen` reads bfloat16, which NumPy lacks, as float32, without loss.

    Raises:
        FileError: the file cannot be read. For other errors see `parse_tensors`.
    """
    return parse_tensors(read_bytes(path), path, widen=widen)


def parse_tensors(data: bytes, where: object, *, widen: bool = False) -> dict[str, np.ndarray]:
    """Parse the contents of a safetensors file; `where` names it in messages; for `widen` see `read_tensors`.

    Raises:
        FormatError: the file is not a safetensors file, is truncated, or repeats a name.
        TensorError: NumPy does not support the type of a tensor.
    """
    _check_types(_header(data, where), where, {*_DTYPES, _BFLOAT16} if widen else {*_DTYPES})

    def refusal(reason: str) -> FormatError:
        shown = f"{len(data)} bytes; {reason}"
        fix = "get the file from its source again"
        return FormatError("is not a valid safetensors file", where=where, found=shown, fix=fix)

    with parsing(refusal):
        tensors = {name: _array(**record) for name, record in deserialize(data)}  # type: ignore[no-untyped-call]
    return {name: tensors[name] for name in sorted(tensors)}


def metadata_of(data: bytes, where: object) -> Mapping[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        FormatError: the file is not a safetensors file, or is truncated.
    """
    header = _header(data, where)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _array(dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    """Make an independent array; a bfloat16 is the upper half of a float32."""
    if dtype == _BFLOAT16:
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    return np.frombuffer(data, np.dtype(_DTYPES[dtype]).newbyteorder("<")).reshape(shape)


def _check_types(header: object, where: object, allowed: set[str]) -> None:
    records = header.items() if isinstance(header, dict) else ()
    if len(records) > _MOST_TENSORS:
        raise TensorError(
            "too many tensors", where=where, found=f"{len(records):,}", expected=f"at most {_MOST_TENSORS:,}"
        )
    shapes = {name: record.get("shape") for name, record in records if isinstance(record, dict)}
    deep = [name for name, shape in shapes.items() if isinstance(shape, list) and len(shape) > _MOST_AXES]
    if deep:
        raise TensorError(
            "tensors of too many axes",
            where=where,
            found=f"`{deep[0]}` with {len(shapes[deep[0]] or ())}",
            expected=f"at most {_MOST_AXES}",
        )
    types = {name: record["dtype"] for name, record in records if isinstance(record, dict) and "dtype" in record}
    faults = [f"`{name}` is {dtype}" for name, dtype in types.items() if str(dtype) not in allowed]
    if faults:
        raise TensorError(
            "tensors of an unsupported type",
            where=where,
            found="; ".join(faults),
            expected=", ".join(code for code in (*_DTYPES, _BFLOAT16) if code in allowed),
        )


def _header(data: bytes, where: object) -> object:
    """Parse the header strictly: the library keeps the last of two tensors with one name."""
    length, rest = int.from_bytes(data[:_HEADER_LENGTH_BYTES], "little"), len(data) - _HEADER_LENGTH_BYTES
    if not data.startswith(b"{", _HEADER_LENGTH_BYTES):
        for start, name, fix in _MISTAKEN:
            if data.startswith(start):
                raise FormatError(f"is {name}", where=where, expected="a safetensors file", fix=fix)
        raise FormatError(
            "is not a safetensors file",
            where=where,
            found=f"{len(data)} bytes that start with `{data[:16]!r}`",
            expected="the length of a header and the header",
            fix="get the file from its source again",
        )
    if length > rest:
        raise FormatError(
            "is truncated",
            where=where,
            found=f"{rest} bytes after the length",
            expected=f"a header of {length} bytes and the tensors",
            fix="get the file from its source again",
        )
    return parse_json(data[_HEADER_LENGTH_BYTES : _HEADER_LENGTH_BYTES + length], f"{where}, header")
