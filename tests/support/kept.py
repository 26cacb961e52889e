"""Archives and exports that tests share, kept from run to run in pytest's cache folder.

Each result is found by a key: the hash of the sources that make it, the installed packages, the interpreter and the
machine. A change of any of them makes it anew, so no stale result can be found. The sources are those that the maker
can import, not the whole package: archives and exports survive an edit of `bundle/` or `cli/`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock
from once import making, once

_ROOT = Path(__file__).parents[2]
_FOLDERS = ("tests/support", "tests/entry_points", "schemas")
"""Folders with modules that tests import."""
_IMPORT = re.compile(r"^\s*(?:from|import) +(\w+)", re.MULTILINE)
_PART = re.compile(r"\badapter_export\.(\w+)")
_WHOLE = re.compile(r"^\s*(?:from adapter_export import (?!errors$)|import adapter_export\b(?!\.))", re.MULTILINE)
_KEYS = 2
"""Number of results per name to keep, so that a concurrent run does not lose files in use."""

Argument = str | bool | Path

_folder: Path | None = None
_used: dict[Path, str] = {}


def keep_in(folder: Path) -> None:
    """Keep results in a folder from here on."""
    global _folder
    _folder = folder


def check_unchanged() -> None:
    """Fail if a test wrote into a result that this process used, and forget that result."""
    for folder, listing in _used.items():
        if _listing(folder) != listing:
            shutil.rmtree(folder)
            pytest.fail(f"a test wrote into `{folder}`, which tests share")


def kept(
    factory: pytest.TempPathFactory, name: str, make: Callable[..., object], *arguments: str | bool | Path
) -> Path:
    """Make a folder `once`, and keep it for the next run. No test may write into it.

    Args:
        factory: pytest's own.
        name: the folder's.
        make: a function of a module in `tests/support` that fills an empty folder, its first argument. The result may
            depend on the arguments, the sources and the installed packages only.
        arguments: further arguments of `make`. A folder outside of the cache counts by its files' sizes and times.
    """
    if _folder is None:
        return once(factory, name, lambda folder: make(folder, *arguments))
    folder = _folder / name / _key(make, arguments)
    with FileLock(f"{folder.parent}.lock"):
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            _make_room(folder.parent)
            unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
            with making(name):
                make(unfinished, *arguments)
            unfinished.rename(folder)
        os.utime(folder)
    _used.setdefault(folder, _listing(folder))
    return folder


def _make_room(folder: Path) -> None:
    """Remove all results in a folder but the last."""
    for old in sorted(folder.iterdir(), key=lambda one: one.stat().st_mtime)[: 1 - _KEYS]:
        shutil.rmtree(old)


def _key(make: Callable[..., object], arguments: Iterable[Argument]) -> str:
    digest = hashlib.sha256(f"{make.__qualname__} {_environment()}".encode())
    for argument in arguments:
        is_kept = isinstance(argument, Path) and argument.is_relative_to(_folder)  # its name has a key
        digest.update((_listing(argument) if isinstance(argument, Path) and not is_kept else str(argument)).encode())
    for file in sources(_ROOT, make.__module__):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _listing(path: Path) -> str:
    """The names, sizes and times of the files in a folder, or of one file."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    found = ((str(file.relative_to(path)), file.stat()) for file in files)
    return repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in found])


@cache
def _environment() -> str:
    """The interpreter, the installed packages, the machine, and the number of threads, which may change last bits."""
    installed = sorted(file.name for file in Path(sysconfig.get_path("purelib")).glob("*.dist-info"))
    return repr([sys.version, platform.platform(), platform.node(), os.environ.get("OMP_NUM_THREADS"), installed])


@cache
def sources(root: Path, module: str) -> list[Path]:
    """List the files of a module of the tests and of everything that it imports, directly or not.

    A part of the package, such as `torch_backend`, counts as a whole, because parts scan their folders. Import
    contracts keep it apart from the layers above it.
    """
    modules = {file.stem: file for folder in _FOLDERS for file in (root / folder).glob("*.py")}
    package = root / "adapter_export"
    found, parts = {package / "__init__.py"}, [modules[module]]
    while parts:
        part = parts.pop()
        for file in [part] if part.is_file() else part.rglob("*"):
            if file not in found and file.is_file() and file.parent.name != "__pycache__":
                found.add(file)
                parts += _imports(file, package, modules)
    return sorted(found)


def _imports(file: Path, package: Path, modules: Mapping[str, Path]) -> set[Path]:
    """Find the modules and the parts of the package that a file names: all that it imports, and perhaps more."""
    if file.suffix != ".py":
        return set()
    text = file.read_text("utf-8")
    if _WHOLE.search(text):
        return {package}
    parts = {package / name for name in [*_PART.findall(text), "errors"]}
    found = {part if part.is_dir() else part.with_suffix(".py") for part in parts}
    return {part for part in found if part.exists()} | {modules[n] for n in _IMPORT.findall(text) if n in modules}
