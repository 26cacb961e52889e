"""`reference/errors`: every error of the package, from `adapter_export.errors`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping

from adapter_export.errors import AdapterExportError


def pages() -> Mapping[str, str]:
    """Return the text of the page by its path."""
    lines = ["# Errors", "", "    import adapter_export as ae", "", "| error | exit code | when |", "|---|---|---|"]
    for depth, error in _tree(AdapterExportError):
        summary = (inspect.getdoc(error) or "").partition("\n")[0]
        lines.append(f"| {'&emsp;' * depth}`{error.__name__}` | {error.exit_code} | {summary} |")
    return {"reference/errors.md": "\n".join(lines) + "\n"}


def _tree(error: type[AdapterExportError], depth: int = 0) -> Iterator[tuple[int, type[AdapterExportError]]]:
    yield depth, error
    for child in error.__subclasses__():
        if child.__module__ == error.__module__:
            yield from _tree(child, depth + 1)
