"""Tensors in files of `torch.save`, read without torch and without unpickling.

Such a file is a pickle beside the numbers of its tensors; `tensor_pickle` reads the pickle. Both layouts are read: the
zip archive (since torch 1.6), and the stream before it.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from adapter_export.errors import within
from adapter_export.format.files import read_bytes
from adapter_export.interop.tensor_pickle import Machine, Storage, View, damaged, refuse

Tensors = dict[str, np.ndarray]

_ZIP = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_HEADERS = 3
_MAX_PICKLE = 64 * 2**20
_MAX_EMPTY_SIDE = 2**20
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    LookupError,
    OverflowError,
)


def read_torch_file(path: Path) -> Tensors:
    """Read a dictionary of tensors that `torch.save` wrote, such as a `state_dict`.

    Raises:
        FileError: it cannot be read.
        FormatError: it is no such file, it is damaged, or its pickle holds anything but tensors by name.
    """
    data = read_bytes(path)
    with within(path):
        found, storages = _of_zip(data) if data.startswith(_ZIP) else _of_stream(data)
        if not isinstance(found, dict):
            refuse("holds no dictionary of tensors", type(found).__name__)
        others = [str(name) for name, value in found.items() if not (isinstance(name, str) and isinstance(value, View))]
        if others:
            refuse("holds more than tensors by name", ", ".join(f"`{name}`" for name in others))
        return {name: _array(view, storages, name) for name, view in found.items()}


Storages = Callable[[Storage], bytes]


def _of_zip(data: bytes) -> tuple[object, Storages]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        names = archive.namelist()
        (index,) = (name for name in names if name.endswith("/data.pkl"))
        root = index.removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            refuse("was written on a machine with another order of bytes", "big endian")
        packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        if packed or archive.getinfo(index).file_size > _MAX_PICKLE:
            refuse("is no archive as `torch.save` writes it", ", ".join(packed) or "a pickle of over 64 MiB")
        found = Machine().run(io.BytesIO(archive.read(index)))
    except _ZIP_ERRORS as error:
        raise damaged(error) from error

    def storage(wanted: Storage) -> bytes:
        try:
            return archive.read(f"{root}data/{wanted.key}")
        except _ZIP_ERRORS as error:
            raise damaged(error) from error

    return found, storage


def _of_stream(data: bytes) -> tuple[object, Storages]:
    """The layout before torch 1.6: pickles one after the other, then each storage with its length before it."""
    stream = io.BytesIO(data)
    magic, _version, _system = (Machine().run(stream) for _ in range(_LEGACY_HEADERS))
    if magic != _LEGACY_MAGIC:
        refuse("is not a file of `torch.save`", "a pickle of something else")
    machine = Machine()
    found, keys = machine.run(stream), Machine().run(stream)
    sizes = {storage.key: np.dtype(_bits(storage.dtype)).itemsize for storage in machine.storages}
    read: dict[str, bytes] = {}
    for key in keys if isinstance(keys, list) else ():
        if key not in sizes:
            refuse("holds numbers that no tensor refers to", f"storage `{key}`")
        length = stream.read(8)
        count = struct.unpack("<q", length)[0] if len(length) == 8 else -1
        read[key] = stream.read(min(max(count, 0) * sizes[key], len(data)))
    return found, lambda wanted: read.get(wanted.key, b"")


def _array(view: View, storages: Storages, name: str) -> np.ndarray:
    """The tensor as an array of its own, after its bounds were checked."""
    storage, data = view.storage, storages(view.storage)
    dtype = np.dtype(_bits(storage.dtype))
    # along an axis of length 1 nothing is stepped over, whatever the file says
    strides = tuple(stride if size > 1 else 0 for size, stride in zip(view.shape, view.strides, strict=True))
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, strides, strict=True))
    size = math.prod(view.shape)
    inside = size == 0 or (last < storage.count and size <= storage.count)
    if len(data) != storage.count * dtype.itemsize or not inside or min((view.offset, *view.shape, *strides)) < 0:
        refuse(f"tensor `{name}` does not fit its numbers", f"{len(data)} bytes for the shape {list(view.shape)}")
    if size == 0:
        return np.zeros([min(side, _MAX_EMPTY_SIDE) for side in view.shape], dtype)
    steps = tuple(stride * dtype.itemsize for stride in strides)
    flat = np.frombuffer(data, dtype)[view.offset :]
    strided = np.lib.stride_tricks.as_strided(flat, view.shape, steps, writeable=False)
    return _widened(strided) if storage.dtype == "bfloat16" else np.array(strided, order="C")


def _bits(dtype: str) -> str:
    return "<u2" if dtype == "bfloat16" else dtype


def _widened(bits: np.ndarray) -> np.ndarray:
    """A bfloat16 is the upper half of a float32."""
    return (bits.astype("<u4") << 16).view("<f4")
