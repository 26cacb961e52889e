"""Export of adapters to the formats of other libraries.

Every `ExportFormat` in a module of this package is registered; add a module to add a format.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module

from adapter_export.plugins.formats.exporters.export_format import ExportFormat


def _formats() -> Iterator[ExportFormat]:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        yield from (one for one in vars(import_module(module.name)).values() if isinstance(one, ExportFormat))


FORMATS: Mapping[str, ExportFormat] = {one.name: one for one in _formats()}
"""Formats by name."""
