"""Write the source tree of `adapter-export-runtime` into a new folder: `python packages/runtime/stage.py FOLDER`.

It is that of `adapter-export`: the modules that `adapter_export.runtime` imports, and what these import, under the name
`adapter_export_runtime`. `python -m build FOLDER` makes the packages of it. `docs/decisions/0026` says why.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCE, TARGET = "adapter_export", "adapter_export_runtime"

FOUND = ("adapter_export.graph.tasks.types", "adapter_export.plugins.integrations", "adapter_export.modalities")
"""Packages whose modules nothing in the runtime imports: found by scanning, or imported by users."""

LEFT_OUT = ("adapter_export.graph.tasks.metrics",)
"""Modules that only `evaluate` and training call, which need libraries that the runtime has not."""


def _file(module: str) -> Path | None:
    """The file of a module of the package, if there is such a module."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _imported(file: Path) -> Iterator[str]:
    """The names that a file imports from the package, those of modules among them."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> dict[str, Path]:
    """The files of the modules that the runtime needs, by name; without the package itself, which has its own here."""
    found: dict[str, Path] = {}
    waiting = [f"{SOURCE}.runtime", f"{SOURCE}.version"]
    waiting += [f"{name}.{file.stem}" for name in FOUND for file in ROOT.joinpath(*name.split(".")).glob("*.py")]
    while waiting:
        name = waiting.pop()
        file = _file(name)
        if name not in (*found, *LEFT_OUT) and name.startswith(f"{SOURCE}.") and file is not None:
            found[name] = file
            waiting += [name.rpartition(".")[0], *_imported(file)]
    return found


def _set_repository(project: Path) -> None:
    """Write the address of the repository, as the main package has it, into a `pyproject.toml`."""
    main = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    address = json.dumps(main["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"])
    text = project.read_text("utf-8").replace('repository = ""', f"repository = {address}")
    project.write_text(text, encoding="utf-8")


def stage(folder: Path) -> None:
    """Write the tree."""
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("stage.py", "__pycache__"))
    shutil.copy2(ROOT / "LICENSE", folder)
    shutil.copy2(ROOT / "hatch_build.py", folder)
    _set_repository(folder / "pyproject.toml")
    needed = modules()
    inside = "|".join({name.split(".")[1] for name in needed if "." in name})  # keys of metadata stay as they are
    for file in needed.values():
        text = re.sub(rf"\b{SOURCE}(?=\.(?:{inside})\b| import\b)", TARGET, file.read_text("utf-8"))
        text = re.sub(r"(\bpip install (?:--upgrade |'))adapter-export\b", r"\1adapter-export-runtime", text)
        copy = folder / TARGET / file.relative_to(ROOT / SOURCE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text, encoding="utf-8")
    shutil.copy2(ROOT / SOURCE / "py.typed", folder / TARGET)


if __name__ == "__main__":
    stage(Path(sys.argv[1]))
