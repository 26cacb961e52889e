"""Libraries of extras, which an installation may lack."""

from __future__ import annotations

import importlib
from types import ModuleType

from adapter_export.errors import MissingExtraError


def require(library: str, extra: str, needed_for: str) -> ModuleType:
    """Import a library of an extra; `MissingExtraError` if it is not installed."""
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise MissingExtraError(library, extra=extra, needed_for=needed_for) from error
