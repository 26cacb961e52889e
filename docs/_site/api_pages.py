"""`reference/api`: the public names of the package, on a page for each section; mkdocstrings describes them."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import adapter_export
from adapter_export import runtime

_PACKAGE = Path(adapter_export.__file__)
_SECTIONS = {
    "models": "Models",
    "training": "Training",
    "adapters": "Adapters",
    "bundles": "Bundles",
    "serving": "Serving",
    "results": "Results",
    "runtime": "Runtime",
}
_TYPE = re.compile(r"^    from (\S+) import (\w+) as \2$", re.MULTILINE)
"""A class that `adapter_export` exports for annotations."""


def public_names() -> Mapping[str, Mapping[str, str]]:
    """Return the path of each public object by its public name, by section."""
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for name in adapter_export.__all__:
        one = getattr(adapter_export, name)
        if inspect.isclass(one) or inspect.isfunction(one):
            section = next((part for part in one.__module__.split(".") if part in found), "models")
            found[section][f"adapter_export.{name}"] = f"{one.__module__}.{one.__qualname__}"
    for module, name in _TYPE.findall(_PACKAGE.read_text("utf-8")):
        if name not in runtime.__all__:
            found["results"][f"adapter_export.{name}"] = f"{module}.{name}"
    for name in runtime.__all__:
        one = getattr(runtime, name)
        if inspect.isclass(one) or inspect.isfunction(one):
            found["runtime"][f"adapter_export.runtime.{name}"] = f"{one.__module__}.{one.__qualname__}"
    return found


def pages() -> Mapping[str, str]:
    """Return the text of each page by its path."""
    names = public_names()
    texts = {f"reference/api/{section}.md": _section(title, names[section]) for section, title in _SECTIONS.items()}
    return {"reference/api/index.md": "\n".join(_index(names)), **texts}


def _index(names: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    example = (adapter_export.__doc__ or "").partition("::\n\n")[2].partition("\n\nEvery")[0]
    yield f"# Python API\n\n{example}\n"
    yield "Each command of `adapter-export` is one of these calls. [Errors](../errors.md) have a page of their own.\n"
    for section, title in _SECTIONS.items():
        yield f"## [{title}]({section}.md)\n\n| Name | Description |\n|---|---|"
        for public, path in names[section].items():
            yield f"| [`{public.removeprefix('adapter_export.')}`]({section}.md#{public}) | {_summary(path)} |"
        yield ""


def _section(title: str, names: Mapping[str, str]) -> str:
    return f"# {title}\n\n" + "\n".join(f"::: {path}\n" for path in names)


def _summary(path: str) -> str:
    module, _, name = path.rpartition(".")
    return (inspect.getdoc(getattr(importlib.import_module(module), name)) or "").partition("\n")[0]
