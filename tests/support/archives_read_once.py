"""Torch archives, read once in a process: each command opens its base anew, as it must, and a test runs many commands.

Nothing changes a program that was loaded. Reading itself is quicker, too: torch looks up the types of its records for
each of the thousands in an archive, and SymPy imports all of its names for each size.
"""

from __future__ import annotations

import builtins
import hashlib
import types
import typing
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import sympy
import torch
from sympy.parsing import sympy_parser
from torch._export.serde import schema, serialize

_MOST = 16
"""Programs that are kept; they hold their weights."""


def install() -> None:
    """Cache the results of `torch.export.load`."""
    _remember_types()
    _remember_names()
    load, loaded = torch.export.load, OrderedDict[bytes, Any]()

    def load_once(file: Any, **options: Any) -> Any:
        if any(options.values()) or not isinstance(file, Path):
            return load(file, **options)
        content = _content(file)
        if content not in loaded:
            loaded[content] = load(file)
            if len(loaded) > _MOST:
                loaded.popitem(last=False)
        return loaded[content]

    torch.export.load = load_once


def _content(file: Path) -> bytes:
    """The hash of an archive's entries, which have the time in them at which they were written."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            digest.update(f"{name} {archive.getinfo(name).file_size} ".encode())
            digest.update(archive.read(name))
    return digest.digest()


def _remember_types() -> None:
    @cache
    def hints(record: type) -> dict[str, Any]:
        return typing.get_type_hints(record, globalns=vars(schema))

    def get_type_hints(record: type, globalns: object = None) -> dict[str, Any]:
        assert globalns is None or globalns is vars(schema)  # older releases of torch leave it out
        return hints(record)

    serialize.typing = types.SimpleNamespace(**{**vars(typing), "get_type_hints": get_type_hints})  # type: ignore[assignment]


def _remember_names() -> None:
    """Give `parse_expr` the names that it makes for each call."""
    parse, names = sympy_parser.parse_expr, {name: getattr(sympy, name) for name in sympy.__all__}
    names |= {name: made for name, made in vars(builtins).items() if isinstance(made, types.BuiltinFunctionType)}
    names |= {"max": sympy.Max, "min": sympy.Min}

    def parse_expr(text: str, local_dict: Any = None, **options: Any) -> Any:
        return parse(text, local_dict, **{"global_dict": dict(names), **options})

    sympy_parser.parse_expr = parse_expr
