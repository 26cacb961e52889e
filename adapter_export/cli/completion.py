"""Shell completion of option values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from adapter_export.errors import AdapterExportError


def _kinds(_: click.Context) -> Iterable[str]:
    from adapter_export.graph.kinds import KINDS

    return KINDS


def _variants(_: click.Context) -> Iterable[str]:
    from adapter_export.format.manifest import GRAPH_VARIANTS

    return GRAPH_VARIANTS


def _adapters(context: click.Context) -> Iterable[str]:
    """Return the adapters of the named bundle, or adapter folders for a command that takes new ones."""
    from adapter_export.safe_io.documents import read_json

    if context.command.name in ("run", "evaluate", "remove"):
        # an option without its value yet does not shift the arguments
        bundle = context.params.get("bundle") or next(iter(context.args), "")
        try:
            manifest: Any = read_json(Path(bundle) / "manifest.json")
            return [record["name"] for record in manifest["adapters"]]
        except (AdapterExportError, KeyError, TypeError):
            return []
    return [path.parent.name for folder in (Path(), Path("adapters")) for path in folder.glob("*/adapter_graph.json")]


WORDS: Mapping[str, Callable[[click.Context], Iterable[str]]] = {
    **dict.fromkeys(("kind", "kinds"), _kinds),
    "variants": _variants,
    **dict.fromkeys(("adapter", "adapters", "fuse", "bake"), _adapters),
}
"""Completion functions by parameter name."""


def completed(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return completions for the last comma-separated item."""
    before, comma, last = incomplete.rpartition(",")
    words = WORDS[str(param.name)](context)
    return [f"{before}{comma}{word}" for word in words if word.startswith(last)]
