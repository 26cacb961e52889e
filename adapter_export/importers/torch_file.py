"""Tensors in files of `torch.save`, read without torch and without unpickling.

Such a file is a pickle beside the numbers of its tensors; `tensor_pickle` reads the pickle. Both layouts are read: the
zip archive (since torch 1.6), and the stream before it.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from adapter_export.errors import FormatError, within
from adapter_export.format.files import read_bytes

# The pickles inside files of `torch.save`, read by a machine that knows what tensors by name are written with.
#
# Whatever else a pickle asks for is refused by name, and nothing is ever imported or called.

_STORAGES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
"""The element types, and NumPy's for them; bfloat16, which NumPy lacks, becomes float32 without loss."""

_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_DICTIONARY = "collections.OrderedDict"
_KNOWN = {_TENSOR, _PARAMETER, _DICTIONARY, *_STORAGES}


@dataclass(frozen=True)
class _Global:
    """A name that the pickle refers to."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The numbers that a tensor is a view of."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class View:
    """A tensor: a part of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Machine:
    """Reads one pickle; knows what tensors by name are written with, and nothing else."""

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> object:
        """The value of the pickle at the stream's position; the stream is left behind it."""
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self._step(opcode.name, argument)
            return self._stack.pop()
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
            struct.error,
        ) as error:
            raise damaged(error) from error

    def _step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        elif name not in _IGNORED:
            refuse("holds more than tensors", f"`{name}` in its pickle")

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _put(self, index: Any) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def _get(self, index: Any) -> None:
        self._stack.append(self._memo[index])

    def _global(self, argument: Any) -> None:
        name = str(argument).replace(" ", ".")
        if name not in _KNOWN:
            refuse("holds more than tensors: its pickle could run code when it is loaded", f"`{name}`")
        self._stack.append(_Global(name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._global(f"{module} {name}")

    def _tuple(self, count: int) -> None:
        values = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        self._stack.append(values)

    def _marked_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _append(self, _: Any) -> None:
        value = self._stack.pop()
        self._stack[-1].append(value)

    def _appends(self, _: Any) -> None:
        values = self._since_mark()
        self._stack[-1].extend(values)

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._stack[-1][key] = value

    def _set_items(self, _: Any) -> None:
        values = self._since_mark()
        self._stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def _build(self, _: Any) -> None:
        """Attributes of a dictionary, such as the `_metadata` of a `state_dict`: not needed."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict):
            refuse("holds more than tensors", "an object with attributes")

    def _persistent(self, _: Any) -> None:
        tag, kind, key, _location, count, *_rest = self._stack.pop()
        if tag != "storage" or kind.name not in _STORAGES:
            refuse("holds more than tensors", f"`{kind.name}`")
        self.storages.append(Storage(_STORAGES[kind.name], str(key), int(count)))
        self._stack.append(self.storages[-1])

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(_MADE[function.name](*arguments))


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> View:
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        refuse("holds a tensor that is not plain", f"shape {shape}")
    return View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _parameter(tensor: View, *_: Any) -> View:
    return tensor


def _dictionary(*pairs: Any) -> dict[Any, Any]:
    return dict(*pairs)


_MADE: Mapping[str, Callable[..., Any]] = {_TENSOR: _tensor, _PARAMETER: _parameter, _DICTIONARY: _dictionary}

_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}

_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING"}
    | {"SHORT_BINSTRING", "UNICODE", "INT", "LONG"}
)

_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})

_HANDLERS: Mapping[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine._mark,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": Machine._put,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "TUPLE": Machine._marked_tuple,
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "APPEND": Machine._append,
    "APPENDS": Machine._appends,
    "SETITEM": Machine._set_item,
    "SETITEMS": Machine._set_items,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent,
    "REDUCE": Machine._reduce,
}


def damaged(error: Exception) -> FormatError:
    """What to raise where a file breaks off or does not fit together."""
    return FormatError(
        "is not a file of `torch.save`, or it is damaged",
        found=f"{type(error).__name__}: {error}",
        expected="a dictionary of tensors",
        fix="take the file from its source again",
    )


def refuse(what: str, found: object) -> NoReturn:
    """Refuse what is no dictionary of plain tensors.

    Raises:
        FormatError: always.
    """
    raise FormatError(
        what,
        found=found,
        expected="a dictionary of plain tensors, as `torch.save(module.state_dict())` writes it",
        fix="only load what you trust: make it again with `torch.save`, or save it as safetensors",
    )


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
