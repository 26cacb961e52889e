"""`reference/api`: the public names of the package, which mkdocstrings describes."""

from __future__ import annotations

from collections.abc import Mapping

import adapter_export


def pages() -> Mapping[str, str]:
    """Return the text of each page by its path."""
    names = [name for name in adapter_export.__all__ if name not in ("__version__", "errors")]
    text = "\n".join(f"::: adapter_export.{name}\n" for name in names)
    return {"reference/api/index.md": f"# Python API\n\n{text}"}
