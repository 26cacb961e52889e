"""Screen torch archives (`torch.export.save`) before torch reads them.

`torch.export.load` executes code from a hostile file in many ways: it unpickles sample inputs, tensors and objects,
evaluates sizes and guards as Python, inserts value names into source text that it compiles, resolves operators and
classes by name, and loads compiled libraries. Therefore this module first reads the file entry by entry, and torch gets
a copy that contains only validated content.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import typing
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import sympy
from torch._export.serde import serialize

from adapter_export.errors import BaseModelError, FormatError, UnsafeArchiveError
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import open_regular
from adapter_export.tables import number_of
from adapter_export.torch_backend.base.pickles import another_zip, foreign_globals, not_an_archive
from adapter_export.torch_backend.base.program_file import SYMBOL, TRUST, check_program, check_texts, cleaned
from adapter_export.words import argument

PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
EXTRA = "extra/"

_ROOT = "base"
_MEGABYTE = 2**20
_TENSOR = re.compile(r"data/weights/weight_\d{1,9}|data/constants/tensor_\d{1,9}")
_LIMITS = (
    (re.compile(re.escape(PROGRAM)), 256 * _MEGABYTE),
    (re.compile(rf"{re.escape(WEIGHTS)}|{re.escape(CONSTANTS)}"), 64 * _MEGABYTE),
    (_TENSOR, None),
    (re.compile(re.escape(SAMPLE_INPUTS)), None),
    (re.compile(r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id"), 256),
    (re.compile(r"extra/[\w.\-]{1,120}"), 256 * _MEGABYTE),
)
"""Allowed entries of an archive, and their maximum bytes; tensors are limited by the size of the file."""

_AGAIN = "copy the file again completely, or save it again with `ae.capture`"

_BYTES = {
    **dict.fromkeys((1, 2, 12, 29, 30, 31, 32, 33), 1),
    **dict.fromkeys((3, 6, 13, 28), 2),
    **dict.fromkeys((4, 7, 9, 34), 4),
    **dict.fromkeys((5, 8, 10, 35), 8),
    11: 16,
}
"""Bytes per number by `ScalarType` (`torch/_export/serde/schema.py`)."""

_STRIDED = 7
"""`Layout.Strided` of `torch/_export/serde/schema.py`."""

_NAME = re.compile(r"[A-Za-z0-9_.\-]+")
_FILE = re.compile(r"(weight|tensor)_\d{1,9}")
_LARGEST = 2**62
"""Bound of sizes and strides: torch computes with int64."""


def _check_payloads(entry: str, config: object, sizes: Mapping[str, int], path: Path) -> list[str]:
    """Check that a list, parsed from its entry, names plain tensors only, which fit into their entries.

    Returns the entries that it names; `sizes` are the bytes of every entry of the archive.
    """
    tensors = config.get("config") if isinstance(config, dict) else None
    if not isinstance(tensors, dict):
        raise _wrong(f"{path}, `{entry}`", "not a list of tensors", "a list")
    folder = entry.rpartition("/")[0]
    where = f"{path}, `{entry}`"
    named = [_check_tensor(name, meta, folder, sizes, f"{where}, `{name[:120]}`") for name, meta in tensors.items()]
    return list(dict.fromkeys(named))


def _wrong(where: str, found: object, expected: object) -> BaseModelError:
    return BaseModelError("has a malformed tensor record", where=where, found=found, expected=expected, fix=_AGAIN)


def _check_tensor(name: str, meta: Any, folder: str, sizes: Mapping[str, int], where: str) -> str:
    if not _NAME.fullmatch(name) or not isinstance(meta, dict):
        raise _wrong(where, "an invalid name or entry", "a tensor by its module path")
    file = meta.get("path_name")
    pickled = meta.get("use_pickle") is not False
    if pickled or not isinstance(file, str) or not _FILE.fullmatch(file):
        raise UnsafeArchiveError(
            "contains a pickled tensor or object, which could run code when loaded",
            where=where,
            found=f"`{file}`" + (", pickled" if pickled else ""),
            expected="plain tensors",
            fix="load it with " + argument("trust_pickle", True) + " only if you trust its author; saving the "
            "model again with `ae.capture` converts tensors of a GPU or "
            "a subclass to plain tensors",
        )
    if f"{folder}/{file}" not in sizes:
        raise _wrong(where, f"no entry `{folder}/{file}`", "the tensor's bytes")
    _check_layout(meta.get("tensor_meta"), sizes[f"{folder}/{file}"], where)
    return f"{folder}/{file}"


def _check_layout(meta: Any, size: int, where: str) -> None:
    dtype = meta.get("dtype") if isinstance(meta, dict) else None
    if type(dtype) is not int or dtype not in _BYTES or meta.get("layout") != _STRIDED:
        raise _wrong(where, "an unknown type or layout", "a dense tensor")
    device = meta.get("device")
    if not isinstance(device, dict) or device.get("type") != "cpu":
        found = device.get("type") if isinstance(device, dict) else device
        raise BaseModelError(
            "was saved from a device other than the CPU",
            where=where,
            found=f"`{found}`",
            expected="`cpu`",
            fix="move the model with `.to('cpu')` and save it again",
        )
    sizes, strides = _numbers(meta.get("sizes"), where), _numbers(meta.get("strides"), where)
    (offset,) = _numbers([meta.get("storage_offset")], where)
    if len(sizes) != len(strides):
        raise _wrong(
            where, f"{number_of(len(sizes), 'size')} and {number_of(len(strides), 'stride')}", "one stride per axis"
        )
    steps = sum((length - 1) * stride for length, stride in zip(sizes, strides, strict=True))
    needed = (offset + steps + 1) * _BYTES[dtype] if math.prod(sizes) else 0
    if needed > size or size % _BYTES[dtype]:
        raise _wrong(where, f"{size} bytes", f"at least {needed}, a multiple of {_BYTES[dtype]}")


def _numbers(values: Any, where: str) -> list[int]:
    read = values if isinstance(values, list) else [None]
    numbers = [value.get("as_int") if isinstance(value, dict) else None for value in read]
    if not all(type(n) is int and 0 <= n < _LARGEST for n in numbers):
        raise _wrong(where, "sizes that are not numbers", "numbers, each at least 0")
    return [int(number) for number in numbers if number is not None]


@dataclass(frozen=True)
class Archive:
    """A screened archive: its texts, and the location of its tensors.

    Attributes:
        path: the file.
        guards: conditions on the lengths of its inputs under which the program is correct.
        texts: content to pass to torch for each entry without tensors, by its name below the root.
        tensors: entries with tensors, by name below the root.
        extra: text of the files saved with the program, by name.
    """

    path: Path
    guards: tuple[str, ...]
    texts: Mapping[str, str | bytes]
    tensors: Mapping[str, str]
    extra: Mapping[str, str]


def screen(path: Path) -> Archive:
    """Read an archive except its weights, and reject everything that could run code.

    Raises:
        FileError: the file cannot be read.
        BaseModelError: it is not a torch archive, or it is truncated or damaged.
        UnsafeArchiveError: it could run code when torch loads it.
        UnknownFieldError: it has fields of a newer torch with text in them.
    """
    with _opened(path) as archive:
        entries = _entries(archive, path)
        sizes = {name: info.file_size for name, info in entries.items()}
        texts = {name: _read(archive, info, path) for name, info in entries.items() if not _TENSOR.fullmatch(name)}
        for name, pattern in _VERSIONS.items():
            if name in texts and not pattern.fullmatch(texts[name]):
                raise _damaged(path, f"`{name}` {texts[name][:20]!r}", f"`{pattern.pattern.decode()}`")
        _check_sample_inputs(texts.get(SAMPLE_INPUTS, b""), path)
        payloads = {name: _json(texts, name, path) for name in (WEIGHTS, CONSTANTS)}
        used = [tensor for name, config in payloads.items() for tensor in _check_payloads(name, config, sizes, path)]
        program = check_program(_json(texts, PROGRAM, path), f"{path}, `{PROGRAM}`")
        for name, config in payloads.items():
            check_texts(config, f"{path}, `{name}`", program.get("torch_version"))
        return Archive(
            path=path,
            guards=tuple(guard for guard in program.get("guards_code") or () if isinstance(guard, str)),
            texts={
                PROGRAM: json.dumps(cleaned(program)),
                **{name: json.dumps(config) for name, config in payloads.items()},
                SAMPLE_INPUTS: b"",
                **{name: data for name, data in texts.items() if name in _VERSIONS},
            },
            tensors={name: entries[name].filename for name in used},
            extra={
                name.removeprefix(EXTRA): _decoded(data, name, path)
                for name, data in texts.items()
                if name.startswith(EXTRA)
            },
        )


_VERSIONS: Mapping[str, re.Pattern[bytes]] = {
    "archive_format": re.compile(rb"pt2"),
    "archive_version": re.compile(rb"\d{1,4}"),
    "byteorder": re.compile(rb"little"),
    ".data/version": re.compile(rb"\d{1,4}\n?"),
}
"""Small entries by which torch recognizes an archive."""


def readable(path: Path) -> None:
    """Check that there is a readable file; raises FileError otherwise."""
    with open_regular(path):
        pass


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with open_regular(path) as file:
        with parsing(lambda _: not_an_archive(path)):
            archive = zipfile.ZipFile(file)
        with archive:
            yield archive


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by name below the root folder, each of a known kind."""
    infos = archive.infolist()
    names = [info.filename for info in infos]
    root = names[0].partition("/")[0] if names else ""
    if f"{root}/{PROGRAM}" not in names:
        raise another_zip(path, archive, names)
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = _checked_name(info, root, path)
        if name in entries:
            raise _damaged(path, f"two entries `{name}`")
        entries[name] = info
    # entries that overlap could multiply the bytes of a small file
    if sum(info.file_size for info in infos) > path.stat().st_size:
        raise _damaged(path, "entries larger than the file")
    return entries


def _checked_name(info: zipfile.ZipInfo, root: str, path: Path) -> str:
    folder, _, name = info.filename.partition("/")
    limit = next((limit for pattern, limit in _LIMITS if pattern.fullmatch(name)), 0)
    # a name must not lead out of the folder
    if folder != root or limit == 0 or ".." in name:
        raise UnsafeArchiveError(
            "contains an unexpected entry",
            where=path,
            found=f"the entry `{info.filename[:120]}`",
            expected="one program, its tensors, and text in `extra/`",
            fix=TRUST,
        )
    # without compression there is no zip bomb
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise _damaged(path, f"`{name}` compressed, but torch never compresses")
    if limit is not None and info.file_size > limit:
        raise _damaged(path, f"`{name}` of {info.file_size} bytes", f"at most {limit}")
    return name


def _damaged(path: Path, found: str, expected: str = "an archive written by `torch.export.save`") -> BaseModelError:
    return BaseModelError(
        "is damaged, or was not written by torch", where=path, found=found, expected=expected, fix=_AGAIN
    )


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    with parsing(partial(_damaged, path)):
        return archive.read(info)


def _check_sample_inputs(data: bytes, path: Path) -> None:
    """Check the sample inputs: they are never loaded, but a pickle that could run code indicates a hostile file."""
    try:
        foreign = sorted(foreign_globals(data)) if data else []
    except ValueError as error:
        raise _damaged(path, f"`{SAMPLE_INPUTS}`: {error}") from error
    if foreign:
        raise UnsafeArchiveError(
            "could run code: its sample inputs are a pickle of more than tensors",
            where=f"{path}, `{SAMPLE_INPUTS}`",
            found=f"`{foreign[0][:120]}`",
            expected="plain tensors, or no sample inputs",
            fix=TRUST,
        )


def _json(texts: Mapping[str, bytes], name: str, path: Path) -> Any:
    if name not in texts:
        raise _damaged(path, f"no entry `{name}`")
    try:
        return parse_json(texts[name], f"{path}, `{name}`")
    except FormatError as error:
        raise _damaged(path, f"`{name}` is not JSON: " + (error.found or error.what)) from error


def _decoded(data: bytes, name: str, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, f"`{name}` is not UTF-8") from error


def _config(archive: Archive) -> Any:
    """Return the record of the weights."""
    text = archive.texts[WEIGHTS]
    return parse_json(text if isinstance(text, bytes) else text.encode(), f"{archive.path}, `{WEIGHTS}`")


def write_outline(archive: Archive, target: BinaryIO) -> None:
    """Write a copy of only screened content, in which each weight is a repeated zero, and without sample inputs.

    `stored_weights` returns the weights.

    Raises:
        BaseModelError: the bytes of a constant are damaged.
        OSError: the copy cannot be written.
    """
    config = _config(archive)
    folder = WEIGHTS.rpartition("/")[0]
    zeros = {}
    for payload in config["config"].values():
        meta = payload["tensor_meta"]
        zeros[f"{folder}/{payload['path_name']}"] = b"\0" * (_BYTES[meta["dtype"]] if _elements(meta) else 0)
        # stride 0 repeats the one zero that is stored
        meta |= {"strides": [{"as_int": 0}] * len(meta["sizes"]), "storage_offset": {"as_int": 0}}
    others = {name: entry for name, entry in archive.tensors.items() if name not in zeros}
    _write(archive, {**archive.texts, WEIGHTS: json.dumps(config), **zeros}, others, target)


def _elements(meta: Mapping[str, Any]) -> int:
    return math.prod(size["as_int"] for size in meta["sizes"])


@dataclass(frozen=True)
class StoredWeight:
    """A weight of an archive in its file.

    Attributes:
        entry: bytes of its entry, [n]; weights that share memory share it.
        sizes: size of each axis.
        strides: elements between neighbours along each axis.
        offset: elements before the first one.
        sha256: SHA-256 of its elements in row-major order, if they are stored so; `None` otherwise.
    """

    entry: npt.NDArray[np.uint8]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    sha256: str | None


def stored_weights(archive: Archive) -> Iterator[tuple[str, StoredWeight]]:
    """Check and memory-map the weights of an archive, by name; their pages are read on access.

    Raises:
        BaseModelError: an entry is damaged, or extends past the end of the file.
    """
    config = _config(archive)["config"]
    folder = WEIGHTS.rpartition("/")[0]
    read = dict[str, tuple[npt.NDArray[np.uint8], str]]()
    with open_regular(archive.path) as file, _opened(archive.path) as source:
        # copy-on-write, because torch does not accept read-only memory; one mapping, because each needs a descriptor
        mapped = np.memmap(file, np.uint8, "c")
        for name, payload in config.items():
            entry, meta = archive.tensors[f"{folder}/{payload['path_name']}"], payload["tensor_meta"]
            if entry not in read:
                read[entry] = _read_entry(file, mapped, source.getinfo(entry), archive.path)
            data, digest = read[entry]
            sizes, strides = (tuple(each["as_int"] for each in meta[key]) for key in ("sizes", "strides"))
            whole = math.prod(sizes) * _BYTES[meta["dtype"]] == len(data) and _is_row_major(sizes, strides)
            yield name, StoredWeight(data, sizes, strides, meta["storage_offset"]["as_int"], digest if whole else None)


def _read_entry(
    file: BinaryIO, mapped: npt.NDArray[np.uint8], info: zipfile.ZipInfo, path: Path
) -> tuple[npt.NDArray[np.uint8], str]:
    """Return the bytes of an entry and their SHA-256, after comparing their checksum.

    They are hashed block by block from the file: hashing mapped memory would keep all of it resident.
    """
    file.seek(info.header_offset + _LENGTHS_AT)
    lengths = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
    start = info.header_offset + _LENGTHS_AT + 4 + lengths
    if start + info.file_size > len(mapped):
        raise _damaged(path, f"`{info.filename}` past the end of the file")
    file.seek(start)
    digest, checksum = hashlib.sha256(), 0
    for position in range(0, info.file_size, _BLOCK):
        block = file.read(min(_BLOCK, info.file_size - position))
        digest.update(block)
        checksum = zlib.crc32(block, checksum)
    if checksum != info.CRC:
        raise _damaged(path, f"`{info.filename}` with another checksum")
    data = mapped[start : start + info.file_size]
    return data.copy() if start % _ALIGNMENT else data, digest.hexdigest()


def _is_row_major(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    return all(size == 1 or stride == step for size, stride, step in zip(sizes, strides, steps, strict=True))


_BLOCK = 2**20
"""Bytes that are hashed at once: they stay in the processor's cache from one hash to the next."""

_ALIGNMENT = 16
"""Alignment in bytes of weights that are used in the file; others are copied. torch writes them at multiples of 64."""

_LENGTHS_AT = 26
"""Position of the lengths of the name and the extra field, 2 bytes each, in the header before an entry's bytes."""


def _write(archive: Archive, texts: Mapping[str, str | bytes], tensors: Mapping[str, str], target: BinaryIO) -> None:
    with _opened(archive.path) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as copy:
        for name, data in texts.items():
            copy.writestr(f"{_ROOT}/{name}", data)
        for name, entry in tensors.items():
            with parsing(partial(_damaged, archive.path)):
                reader = source.open(entry)
            with reader, copy.open(f"{_ROOT}/{name}", "w", force_zip64=True) as written:
                try:
                    shutil.copyfileobj(reader, written, 4 * _MEGABYTE)
                except (zipfile.BadZipFile, EOFError) as error:
                    raise _damaged(archive.path, str(error)) from error


@contextmanager
def memoized() -> Iterator[None]:
    """Let torch resolve the types of each record, and parse each size, once while it loads a program.

    It does both for every node otherwise, which is more than half of the time: `typing.get_type_hints` evaluates
    annotations, and `sympy.sympify` imports all names of sympy for each text.
    """
    hints, sizes = dict[object, Any](), dict[str, Any]()

    def get_type_hints(record: object, **options: Any) -> Any:
        if record not in hints:
            hints[record] = typing.get_type_hints(record, **options)
        return hints[record]

    def sympify(size: object, **options: Any) -> Any:
        if not isinstance(size, str) or _BARE_SYMBOL.search(size):  # depends on the symbols that torch knows by then
            return sympy.sympify(size, **options)
        if size not in sizes:
            sizes[size] = sympy.sympify(size, **options)
        return sizes[size]

    # only torch's reader sees the copies of the two modules, and any release that names them otherwise ignores them
    reader: Any = serialize
    reader.typing = SimpleNamespace(**{**vars(typing), "get_type_hints": get_type_hints})
    reader.sympy = SimpleNamespace(**{**vars(sympy), "sympify": sympify})
    try:
        yield
    finally:
        reader.typing, reader.sympy = typing, sympy


_BARE_SYMBOL = re.compile(rf"(?<!['\"\w]){SYMBOL.pattern}")
"""A symbol by its name, unlike `Symbol('s0', integer=True)`."""
