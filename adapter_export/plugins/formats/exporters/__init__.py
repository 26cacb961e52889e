"""Export of adapters to the formats of other libraries.

Every `ExportFormat` in a module of this package, or in one that a plug-in adds to `exporters`, is a format.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import chain

from adapter_export.plugin import first_of_each, part_modules
from adapter_export.plugins.formats.exporters.export_format import ExportFormat


def _formats() -> Iterator[ExportFormat]:
    modules = (import_module(module.name) for module in pkgutil.iter_modules(__path__, f"{__name__}."))
    for module in chain(modules, part_modules("exporters")):
        yield from (entry for entry in vars(module).values() if isinstance(entry, ExportFormat))


FORMATS: Mapping[str, ExportFormat] = first_of_each("export format", ((entry.name, entry) for entry in _formats()))
"""Formats by name."""
