"""What a file is that is no torch archive, and what its owner can do; pickles are listed here, and never loaded."""

from __future__ import annotations

import io
import pickletools
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from adapter_export.errors import BaseModelError, command

ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, KeyError)
"""What the `zipfile` module raises where a file is not what it should be."""

_PLAIN = frozenset(
    {
        *("collections.OrderedDict", "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_parameter"),
        *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch.Size", "torch.Tensor"),
        *("torch.nn.parameter.Parameter", "torch.serialization._get_layout", "io.BytesIO", "_io.BytesIO"),
        *("torch._export.serde.serialize._reconstruct_fake_tensor", "torch.device"),
    }
)
"""The names that a pickle of plain tensors refers to, beside storages and those of `torch` in `_DTYPES`.

Those from `io.BytesIO` on are in sample inputs of a program that was exported without real data.
"""

_DTYPES = frozenset(
    {
        *("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"),
        *("complex64", "complex128", "strided"),
    }
)
_MAX_PICKLE = 64 * 2**20


def foreign_globals(data: bytes) -> set[str]:
    """The names that a pickle refers to and that a pickle of plain tensors does not.

    Args:
        data: a pickle, or the zip of `torch.save`.

    Raises:
        ValueError: it is neither, or it is too large to be read.
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
    """The names, by following the strings that are pushed; a name that cannot be followed is given as `?`."""
    names: set[str] = set()
    pushed: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in {"GLOBAL", "INST"}:
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(pushed[-2:]) if len(pushed) >= 2 else "?")
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


_SAVE = "load the model in Python and save it with `save_base(model, example_inputs, path)`"
_PICKLE = (
    "only if you trust whoever made it, run "
    + command('capture(FILE, "model.pt", trust_pickle=True)', "capture --trust-pickle FILE -o model.pt")
    + ", which runs its code once, and use `model.pt`, which holds none"
)
_WHOLE = "copy the file again as a whole, or save it again"

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_MARKS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it points to", "run `git lfs pull`"),
    *((mark, "a pickle, which could run code when it is read", _PICKLE) for mark in _PICKLES),
    (b"GGUF", "a GGUF file: weights without a program", _SAVE),
    (b"\x89HDF", "an HDF5 file: weights without a program", _SAVE),
    (b"\x1f\x8b", "a gzip file", "unpack it first"),
    (b"<", "a page of HTML or XML, not a model", "download the file itself"),
    (b"{", "a text file", _SAVE),
)
_SAFETENSORS = "a safetensors file: weights without a program"
_FOLDER = "give the Hugging Face folder that it is from, which has a `config.json` beside it"
_ONNX = "an ONNX graph, which torch cannot load"

_PROGRAM = "models/model.json"
_LIBRARIES = ("torch.", "builtins.", "__builtin__.", "collections.", "_codecs.", "numpy.", "?")


def not_an_archive(path: Path) -> BaseModelError:
    """The error for a file that is no readable zip."""
    with path.open("rb") as file:
        return _error(path, *_describe_start(file.read(64), path))


def untrusted(path: Path) -> BaseModelError:
    """The error for a pickled module that nobody said to trust."""
    return _error(path, "a pickled module or object, which could run code when it is read", _PICKLE)


def _error(path: Path, found: str, fix: str) -> BaseModelError:
    return BaseModelError(
        "is not a torch archive",
        where=path,
        found=found,
        expected="a file of `save_base` or of `torch.export.save`",
        fix=fix,
    )


def _describe_start(start: bytes, path: Path) -> tuple[str, str]:
    if not start:
        return "an empty file", _WHOLE
    if start.startswith(b"PK"):
        return "a zip file that is truncated or damaged", _WHOLE
    if start[8:].startswith(b"{"):
        return _SAFETENSORS, _FOLDER
    if path.suffix == ".onnx" or (start[:1] == b"\x08" and b"\x12" in start[:4]):
        return _ONNX, f"give the `.onnx` file to {command('build', 'build')}, which takes it as it is"
    known = next(((found, fix) for mark, found, fix in _MARKS if start.startswith(mark)), None)
    return known or (f"a file that begins with `{start[:8].hex(' ')}`", _SAVE)


def another_zip(path: Path, archive: zipfile.ZipFile, names: Sequence[str]) -> BaseModelError:
    """The error for a zip that is no archive of `torch.export`."""
    return _error(path, *_describe_zip(archive, names))


def check_sort(path: Path) -> None:
    """Refuse a zip that has no program of `torch.export`: trust does not make a model with inputs of it.

    Raises:
        BaseModelError: it is another kind of file, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if not any(name.endswith(_PROGRAM) for name in names):
                raise another_zip(path, archive, names)
    except ZIP_ERRORS as error:
        raise not_an_archive(path) from error


def check_pickled(path: Path) -> None:
    """Refuse a readable file that is no pickled module or object; nothing of it is run.

    Raises:
        BaseModelError: it is another kind of file, or damaged.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(2) in _PICKLES:
                return
        raise not_an_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            found, fix = _describe_zip(archive, archive.namelist())
    except ZIP_ERRORS as error:
        raise not_an_archive(path) from error
    if fix != _PICKLE:
        raise BaseModelError("is no pickled module", where=path, found=found, fix=fix)


def _describe_zip(archive: zipfile.ZipFile, names: Sequence[str]) -> tuple[str, str]:
    lasts = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in lasts or any("/code/" in name for name in names):
        return "a TorchScript archive", _SAVE
    if any(name.endswith(_PROGRAM) for name in names):
        return "an archive of `torch.export` already", "use it as it is; every command takes it"
    if "serialized_exported_program.json" in lasts:
        return "an archive of torch 2.7 or older", "load it with that torch, export the model again and save it"
    if any("/data/aotinductor/" in name for name in names):
        return "a compiled package of AOTInductor, which holds machine code", _SAVE
    if "data.pkl" in lasts:
        return _describe_pickle(archive, next(name for name in names if name.endswith("data.pkl")))
    if any(name.endswith(".npy") for name in names):
        return "a NumPy file: arrays without a program", _SAVE
    return "a zip file of another kind", _SAVE


def _describe_pickle(archive: zipfile.ZipFile, name: str) -> tuple[str, str]:
    """A `torch.save` of weights refers to tensors only; one of a module to its class."""
    try:
        if archive.getinfo(name).file_size > _MAX_PICKLE:
            return "a file of `torch.save`", _SAVE
        foreign = sorted(foreign_globals(archive.read(name)), key=_likely_the_model)
    except ZIP_ERRORS:
        return "a file of `torch.save` that is damaged", _WHOLE
    if foreign:
        return f"a pickled module or object (`{foreign[0]}`), which could run code when it is read", _PICKLE
    return "the weights of a model (a state dict of `torch.save`) without its program", _SAVE


def _likely_the_model(name: str) -> tuple[bool, bool, str]:
    """Orders names of classes: the user's own say more than those of torch, and those more than Python's."""
    return name.startswith(_LIBRARIES), not name.startswith("torch.nn."), name
