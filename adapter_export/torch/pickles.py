"""What a pickle would import, read from its opcodes without unpickling it."""

from __future__ import annotations

import io
import pickletools
import zipfile
import zlib

ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    KeyError,
)
"""What the `zipfile` module raises where a file is not what it should be."""

_PLAIN = frozenset(
    {
        "collections.OrderedDict",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch.Size",
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        # sample inputs of a program that was exported without real data
        "io.BytesIO",
        "_io.BytesIO",
        "torch._export.serde.serialize._reconstruct_fake_tensor",
        "torch.device",
    }
)
"""The names that a pickle of plain tensors refers to."""

_MAX_PICKLE = 64 * 2**20


def foreign_globals(data: bytes) -> set[str]:
    """The names that a pickle refers to and that a pickle of plain tensors does not.

    Args:
        data: a pickle, or the zip of `torch.save`.

    Raises:
        ValueError: it is neither, or it is too large to be read.
    """
    return {name for name in _globals(_pickle_of(data)) if not _is_plain(name)}


def _is_plain(name: str) -> bool:
    module, _, member = name.rpartition(".")
    return name in _PLAIN or (module == "torch" and (member.endswith("Storage") or member in _DTYPES))


_DTYPES = frozenset(
    {
        "bool",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex64",
        "complex128",
        "strided",
    }
)


def _pickle_of(data: bytes) -> bytes:
    if not data.startswith(b"PK"):
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            (info,) = (info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
            if info.file_size > _MAX_PICKLE:
                raise ValueError("the pickle is too large")
            return archive.read(info)
    except ZIP_ERRORS as error:
        raise ValueError(str(error)) from error


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
