"""Pickles and other files that are not torch archives: recognized without running them; tensors are read."""

from __future__ import annotations

import io
import pickletools
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from adapter_export.errors import BaseModelError, FormatError, within
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import open_regular, read_bytes
from adapter_export.torch_backend.base.log_capture import LIBRARY_ERRORS, captured_logs, first_line
from adapter_export.words import command, quoted

ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, KeyError)
"""Errors that the `zipfile` module raises for a damaged file."""

_PLAIN = frozenset(
    {
        *("collections.OrderedDict", "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_parameter"),
        *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch.Size", "torch.Tensor"),
        *("torch.nn.parameter.Parameter", "torch.serialization._get_layout", "io.BytesIO", "_io.BytesIO"),
        *("torch._export.serde.serialize._reconstruct_fake_tensor", "torch.device"),
    }
)
"""Names that a pickle of plain tensors refers to, besides storages and those of `torch` in `_DTYPES`.

Those from `io.BytesIO` on occur in sample inputs of a program that was exported without real data.
"""

_DTYPES = frozenset(
    {
        *("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"),
        *("complex64", "complex128", "strided"),
    }
)
_MAX_PICKLE = 64 * 2**20
"""Maximum bytes of a pickle that is followed: it names tensors, whose numbers are in other entries."""


def foreign_globals(data: bytes) -> set[str]:
    """Return the names that a pickle, or the zip of `torch.save`, refers to beyond those of plain tensors.

    Raises:
        ValueError: it is neither, or it is too large.
    """
    if data.startswith(b"PK"):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                (info,) = (info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
                if info.file_size > _MAX_PICKLE:
                    raise ValueError("the pickle is too large")
                data = archive.read(info)
        except ZIP_ERRORS as error:
            raise ValueError(str(error)) from error
    return {name for name in _globals(data) if not _is_plain(name)}


def _is_plain(name: str) -> bool:
    module, _, member = name.rpartition(".")
    return name in _PLAIN or (module == "torch" and (member.endswith("Storage") or member in _DTYPES))


def _globals(data: bytes) -> set[str]:
    """Return the names, by following the strings that are pushed; a name that cannot be followed is `?`."""
    names: set[str] = set()
    pushed: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in {"GLOBAL", "INST"}:
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(pushed[-2:]) if len(pushed) >= 2 else "?")
        # a number in a registry of the process, whose name is unknown
        elif opcode.name in {"EXT1", "EXT2", "EXT4"}:
            names.add("?")
        elif opcode.name in {"BINGET", "LONG_BINGET", "GET"}:
            pushed.append(memo.get(int(str(argument)), "?"))
        elif opcode.name in {"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"}:
            index = len(memo) if opcode.name == "MEMOIZE" else int(str(argument))
            memo[index] = pushed[-1] if pushed else "?"
        elif isinstance(argument, str):
            pushed.append(argument)
        else:
            pushed.append("?")
    return names


_SAVE = "load the model in Python and save it with `ae.capture(model, path, example_inputs=…)`"
_PICKLE = (
    "only if you trust its author, run "
    + command('capture(FILE, "model.pt", trust_pickle=True)', "capture --trust-pickle FILE -o model.pt")
    + ", which runs its code once, and use `model.pt`, which contains no code"
)
_WHOLE = "copy the file again completely, or save it again"

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_MARKS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it points to", "run `git lfs pull`"),
    *((mark, "a pickle, which could run code when loaded", _PICKLE) for mark in _PICKLES),
    (b"GGUF", "a GGUF file: weights without a program", _SAVE),
    (b"\x89HDF", "an HDF5 file: weights without a program", _SAVE),
    (b"\x1f\x8b", "a gzip file", "unpack it first"),
    (b"<", "an HTML or XML page, not a model", "download the file itself"),
    (b"{", "a text file", _SAVE),
)
_PROGRAM = "models/model.json"
_LIBRARIES = ("torch.", "builtins.", "__builtin__.", "collections.", "_codecs.", "numpy.", "?")


def not_an_archive(path: Path) -> BaseModelError:
    """Return the error for a file that is not a readable zip."""
    with open_regular(path) as file:
        start = file.read(64)
    known = next(((found, fix) for mark, found, fix in _MARKS if start.startswith(mark)), None)
    if not start:
        known = "an empty file", _WHOLE
    elif start.startswith(b"PK"):
        known = "a zip file that is truncated or damaged", _WHOLE
    elif start[8:].startswith(b"{"):
        known = (
            "a safetensors file: weights without a program",
            "use its Hugging Face folder, which also contains a `config.json`",
        )
    elif path.suffix == ".onnx" or (start[:1] == b"\x08" and b"\x12" in start[:4]):
        fix = "pass the `.onnx` file to " + command("build", "build")
        known = "an ONNX graph, which torch cannot load", fix
    return _error(path, *(known or (f"a file starting with `{start[:8].hex(' ')}`", _SAVE)))


def untrusted(path: Path) -> BaseModelError:
    """Return the error for a pickled module that the caller does not trust."""
    return _error(path, "a pickled module or object, which could run code when loaded", _PICKLE)


def _error(path: Path, found: str, fix: str) -> BaseModelError:
    return BaseModelError(
        "is not a torch archive",
        where=path,
        found=found,
        expected="a file written by `ae.capture` or `torch.export.save`",
        fix=fix,
    )


def another_zip(path: Path, archive: zipfile.ZipFile, names: Sequence[str]) -> BaseModelError:
    """Return the error for a zip that is not an archive of `torch.export`."""
    return _error(path, *_describe_zip(archive, names))


def check_exported(path: Path) -> None:
    """Raise BaseModelError for a file without a program of `torch.export`: trust does not make it a model."""
    with parsing(lambda _: not_an_archive(path)), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if not any(name.endswith(_PROGRAM) for name in names):
            raise another_zip(path, archive, names)


def check_pickled(path: Path) -> None:
    """Raise BaseModelError for a readable file that is not a pickled module or object; nothing in it is run."""
    with parsing(lambda _: not_an_archive(path)), open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            if file.read(2) in _PICKLES:
                return
            raise not_an_archive(path)
        with zipfile.ZipFile(file) as archive:
            found, fix = _describe_zip(archive, archive.namelist())
    if fix != _PICKLE:
        raise BaseModelError("is not a pickled module", where=path, found=found, fix=fix)


def _describe_zip(archive: zipfile.ZipFile, names: Sequence[str]) -> tuple[str, str]:
    lasts = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in lasts or any("/code/" in name for name in names):
        return "a TorchScript archive", _SAVE
    if any(name.endswith(_PROGRAM) for name in names):
        return "an archive of `torch.export` already", "use it directly; every command accepts it"
    if "serialized_exported_program.json" in lasts:
        return "an archive of torch 2.7 or older", "load it with that torch, export the model again and save it"
    if any("/data/aotinductor/" in name for name in names):
        return "a compiled package of AOTInductor, which contains machine code", _SAVE
    if "data.pkl" in lasts:
        return _describe_pickle(archive, next(name for name in names if name.endswith("data.pkl")))
    if any(name.endswith(".npy") for name in names):
        return "a NumPy file: arrays without a program", _SAVE
    return "a zip file of another kind", _SAVE


def _describe_pickle(archive: zipfile.ZipFile, name: str) -> tuple[str, str]:
    """Describe a file of `torch.save`: weights refer to tensors only, a module to its class."""
    try:
        if archive.getinfo(name).file_size > _MAX_PICKLE:
            return "a file of `torch.save`", _SAVE
        foreign = foreign_globals(archive.read(name))
    except ZIP_ERRORS:
        return "a file of `torch.save` that is damaged", _WHOLE
    if foreign:
        # prefer the user's class over torch's, and torch's over Python's
        model = min(foreign, key=lambda one: (one.startswith(_LIBRARIES), not one.startswith("torch.nn."), one))
        return f"a pickled module or object (`{model}`), which could run code when loaded", _PICKLE
    return "the weights of a model (a state dict of `torch.save`) without its program", _SAVE


_OLD_PICKLES = 5
"""Number of consecutive pickles in the layout before torch 1.6."""

_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_DEEPEST = 8
"""Maximum nesting of tuples; those of tensors nest 3 deep."""

_MOST_SHARED = 16
"""Maximum ratio of the tensors' size to that of the file; views that share storage are counted separately."""


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Read a dictionary of tensors that `torch.save` wrote, such as a `state_dict`; bfloat16 becomes float32.

    torch's restricted reader, which creates only tensors, reads it after the file's instructions were checked.

    Raises:
        FileError: it cannot be read.
        FormatError: it is not such a file, is damaged, or contains anything except tensors by name.
    """
    data = read_bytes(path)
    with within(path):
        with captured_logs(), parsing(_damaged):
            for pickled in _pickles(data):
                _check_pickle(pickled)
            # the bytes that were checked, not the file, which may have changed
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(loaded, dict):
            _refuse("does not contain a dictionary of tensors", type(loaded).__name__)
        others = [
            str(name)
            for name, value in loaded.items()
            if not (isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided)
        ]
        if others:
            _refuse("contains more than tensors by name", quoted(others[:8]))
        size = sum(tensor.numel() * tensor.element_size() for tensor in loaded.values())
        # strides of 0 let a small file ask for gigabytes
        if size > _MOST_SHARED * len(data):
            _refuse("contains many tensors that share few numbers", f"{size} bytes in a file of {len(data)}")
        return {name: _array(name, tensor) for name, tensor in loaded.items()}


def _damaged(reason: str) -> FormatError:
    return FormatError(
        "is not a file of `torch.save`, or it is damaged",
        found=reason.partition(" (1) ")[0],  # drop torch's advice to load the file in a way that runs code
        expected="a dictionary of tensors",
        fix="get the file from its source again",
    )


def _pickles(data: bytes) -> list[bytes]:
    """Return the pickle of an archive; in the older layout, the consecutive pickles at the start."""
    if not data.startswith(b"PK\x03\x04"):
        stream, pickles = io.BytesIO(data), list[bytes]()
        while len(pickles) < _OLD_PICKLES and stream.tell() < len(data):
            start = stream.tell()
            for _ in pickletools.genops(stream):
                pass
            pickles.append(data[start : stream.tell()])
        return pickles
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        (index,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
        if packed or index.file_size > _MAX_PICKLE or sum(entry.file_size for entry in entries) > len(data):
            _refuse("is not an archive written by `torch.save`", ", ".join(packed) or "entries larger than the file")
        return [archive.read(index)]


def _check_pickle(data: bytes) -> None:
    """Reject everything that could run code, and deeply nested tuples: hashing one can double in time per level."""
    foreign = sorted(foreign_globals(data))
    if foreign:
        names = quoted(foreign[:8])
        _refuse("contains more than tensors: its pickle could run code when loaded", names)
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
                _refuse("contains more than tensors", "one tuple in two places")
        else:
            if pickletools.markobject in before:
                del depths[marks.pop() :]
                before = before[: before.index(pickletools.markobject)]
            del depths[len(depths) - len(before) :]
            depths += [0] * len(opcode.stack_after)
        if depths and depths[-1] > _DEEPEST:
            _refuse("contains more than tensors", f"tuples nested {depths[-1]} deep")


def _array(name: str, tensor: Tensor) -> np.ndarray:
    """Return the numbers of a tensor, without a copy if NumPy has its type."""
    plain = tensor.detach()
    try:
        return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    except LIBRARY_ERRORS as error:
        _refuse(f"tensor `{name}` is not an array", first_line(error))


def _refuse(what: str, found: object) -> NoReturn:
    raise FormatError(
        what,
        found=found,
        expected="a dictionary of plain tensors, as written by `torch.save(module.state_dict())`",
        fix="only load files that you trust; save it again with `torch.save`, or as safetensors",
    )
