"""The lists of tensors in a torch archive: which entry holds which tensor, and how it lies there."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapter_export.errors import BaseModelError, UnsafeArchiveError

_BYTES = {
    **dict.fromkeys((1, 2, 12, 29, 30, 31, 32, 33), 1),
    **dict.fromkeys((3, 6, 13, 28), 2),
    **dict.fromkeys((4, 7, 9, 34), 4),
    **dict.fromkeys((5, 8, 10, 35), 8),
    11: 16,
}
"""The size of one number by `ScalarType` (`torch/_export/serde/schema.py`)."""

_STRIDED = 7
_NAME = re.compile(r"[A-Za-z0-9_.\-]+")
_FILE = re.compile(r"(weight|tensor)_\d{1,9}")
_LARGEST = 2**62


def check_payloads(entry: str, config: object, sizes: Mapping[str, int], path: Path) -> list[str]:
    """Check that a list names plain tensors only, which fit into their entries; give the entries that it names.

    Args:
        entry: the list's own entry.
        config: its parsed JSON.
        sizes: the bytes of every entry of the archive.
        path: the archive, for messages.

    Raises:
        UnsafeArchiveError: something is pickled.
        BaseModelError: something else is wrong.
    """
    tensors = config.get("config") if isinstance(config, dict) else None
    if not isinstance(tensors, dict):
        raise _wrong(f"{path}, `{entry}`", "no list of tensors", "a list")
    folder = entry.rpartition("/")[0]
    used: dict[str, None] = {}
    for name, meta in tensors.items():
        where = f"{path}, `{entry}`, `{name[:120]}`"
        used[_check_tensor(name, meta, folder, sizes, where)] = None
    return list(used)


def _wrong(where: str, found: object, expected: object) -> BaseModelError:
    return BaseModelError(
        "describes a tensor wrongly",
        where=where,
        found=found,
        expected=expected,
        fix="copy the file again as a whole, or save it again with `save_base`",
    )


def _check_tensor(name: str, meta: Any, folder: str, sizes: Mapping[str, int], where: str) -> str:
    if not _NAME.fullmatch(name) or not isinstance(meta, dict):
        raise _wrong(where, "an odd name or entry", "a tensor by its module path")
    file = meta.get("path_name")
    pickled = meta.get("use_pickle") is not False
    if pickled or not isinstance(file, str) or not _FILE.fullmatch(file):
        raise UnsafeArchiveError(
            "holds a pickled tensor or object, which could run code when it is read",
            where=where,
            found=f"`{file}`" + (", pickled" if pickled else ""),
            expected="plain tensors",
            fix="load it with `--trust-pickle` only if you trust whoever made it; a GPU's or subclass's tensors become "
            "plain ones by saving the model again with `save_base`",
        )
    if f"{folder}/{file}" not in sizes:
        raise _wrong(where, f"no entry `{folder}/{file}`", "the tensor's bytes")
    _check_layout(meta.get("tensor_meta"), sizes[f"{folder}/{file}"], where)
    return f"{folder}/{file}"


def _check_layout(meta: Any, size: int, where: str) -> None:
    if not isinstance(meta, dict) or meta.get("layout") != _STRIDED or meta.get("dtype") not in _BYTES:
        raise _wrong(where, "an unknown type or layout", "a dense tensor")
    device = meta.get("device")
    if not isinstance(device, dict) or device.get("type") != "cpu":
        found = device.get("type") if isinstance(device, dict) else device
        raise BaseModelError(
            "was saved from another device than the CPU",
            where=where,
            found=f"`{found}`",
            expected="`cpu`",
            fix="move the model with `.to('cpu')` and save it again",
        )
    sizes, strides = _numbers(meta.get("sizes"), where), _numbers(meta.get("strides"), where)
    (offset,) = _numbers([meta.get("storage_offset")], where)
    if len(sizes) != len(strides):
        raise _wrong(where, f"{len(sizes)} sizes and {len(strides)} strides", "one stride for each axis")
    needed = _elements_needed(sizes, strides, offset) * _BYTES[meta["dtype"]]
    if needed > size:
        raise _wrong(where, f"{size} bytes", f"at least {needed}")


def _numbers(values: Any, where: str) -> list[int]:
    numbers = [value.get("as_int") if isinstance(value, dict) else None for value in values or []]
    if not isinstance(values, list) or not all(type(n) is int and 0 <= n < _LARGEST for n in numbers):
        raise _wrong(where, "sizes that are no numbers", "numbers, each 0 or more")
    return [int(number) for number in numbers if number is not None]


def _elements_needed(sizes: list[int], strides: list[int], offset: int) -> int:
    """The number of elements up to the last one that a strided tensor reads."""
    if math.prod(sizes) == 0:
        return 0
    return offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
