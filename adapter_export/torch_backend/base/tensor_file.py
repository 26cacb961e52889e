"""Files of `torch.save` that hold tensors by name, such as `pytorch_adapter.bin`, as NumPy arrays."""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from adapter_export.errors import FormatError, within
from adapter_export.format.files import read_bytes
from adapter_export.torch_backend.base.file_kinds import ZIP_ERRORS, foreign_globals
from adapter_export.torch_backend.base.quiet import LIBRARY_ERRORS, first_line, quiet

_ZIP = b"PK\x03\x04"
_PICKLES = 5
"""How many pickles stand one after the other in the layout before torch 1.6."""

_MOST_PICKLED = 64 * 2**20
_MOST_SHARED = 16
"""How many times as large as the file its tensors may be; views that share numbers count each."""

_ERRORS: tuple[type[Exception], ...] = (*LIBRARY_ERRORS, *ZIP_ERRORS, struct.error, EOFError, MemoryError)


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Read a dictionary of tensors that `torch.save` wrote, such as a `state_dict`; bfloat16 becomes float32.

    Torch's own reader reads it, which makes tensors alone, after a look at what the file asks it to do.

    Raises:
        FileError: it cannot be read.
        FormatError: it is no such file, it is damaged, or it holds anything but tensors by name.
    """
    data = read_bytes(path)
    with within(path):
        try:
            for pickled in _pickles(data):
                _check_pickle(pickled)
            with quiet():
                found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except _ERRORS as error:
            raise FormatError(
                "is not a file of `torch.save`, or it is damaged",
                found=f"{type(error).__name__}: {_reason(error)}",
                expected="a dictionary of tensors",
                fix="take the file from its source again",
            ) from error
        if not isinstance(found, dict):
            _refuse("holds no dictionary of tensors", type(found).__name__)
        others = [str(name) for name, value in found.items() if not _is_tensor(name, value)]
        if others:
            _refuse("holds more than tensors by name", ", ".join(f"`{name}`" for name in others[:8]))
        size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
        if size > _MOST_SHARED * len(data):
            _refuse("holds many tensors that share few numbers", f"{size} bytes in a file of {len(data)}")
        return {name: _array(name, tensor) for name, tensor in found.items()}


def _pickles(data: bytes) -> list[bytes]:
    """The pickle of an archive; of the older layout those that come first, one after the other."""
    if not data.startswith(_ZIP):
        stream, found = io.BytesIO(data), list[bytes]()
        while len(found) < _PICKLES and stream.tell() < len(data):
            start = stream.tell()
            for _ in pickletools.genops(stream):
                pass
            found.append(data[start : stream.tell()])
        return found
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        (index,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
        if packed or index.file_size > _MOST_PICKLED or sum(entry.file_size for entry in entries) > len(data):
            _refuse("is no archive as `torch.save` writes it", ", ".join(packed) or "entries larger than the file")
        return [archive.read(index)]


_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_DEEPEST = 8
"""How deep tuples lie in one another; those of tensors lie 3 deep."""


def _check_pickle(data: bytes) -> None:
    """Refuse what could run code, and tuples in one another: the time to hash one can double with every level."""
    foreign = sorted(foreign_globals(data))
    if foreign:
        names = ", ".join(f"`{name}`" for name in foreign[:8])
        _refuse("holds more than tensors: its pickle could run code when it is loaded", names)
    depths: list[int] = []  # of each value on the pickle's stack, as a tuple; 0 for everything else
    marks: list[int] = []
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name, before = opcode.name, opcode.stack_before
        if name == "MARK":
            marks.append(len(depths))
        elif name in _TUPLES or name == "TUPLE":
            start = marks.pop() if name == "TUPLE" else len(depths) - _TUPLES[name]
            depths[start:] = [1 + max(depths[start:], default=0)]
        elif "PUT" in name or name == "MEMOIZE":
            memo[len(memo) if name == "MEMOIZE" else int(str(argument))] = depths[-1]
        elif "GET" in name:
            depths.append(memo[int(str(argument))])
            if depths[-1]:
                _refuse("holds more than tensors", "one tuple in two places")
        else:
            if pickletools.markobject in before:
                del depths[marks.pop() :]
                before = before[: before.index(pickletools.markobject)]
            del depths[len(depths) - len(before) :]
            depths += [0] * len(opcode.stack_after)
        if depths and depths[-1] > _DEEPEST:
            _refuse("holds more than tensors", f"tuples that lie {depths[-1]} deep in one another")


def _reason(error: Exception) -> str:
    """What is wrong, without torch's advice to read the file in a way that runs code."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line.startswith("WeightsUnpickler error")), first_line(error))


def _is_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided


def _array(name: str, tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor, not copied where NumPy has its type."""
    plain = tensor.detach()
    try:
        return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    except LIBRARY_ERRORS as error:
        _refuse(f"tensor `{name}` is no array", first_line(error))


def _refuse(what: str, found: object) -> NoReturn:
    raise FormatError(
        what,
        found=found,
        expected="a dictionary of plain tensors, as `torch.save(module.state_dict())` writes it",
        fix="only load what you trust: make it again with `torch.save`, or save it as safetensors",
    )
