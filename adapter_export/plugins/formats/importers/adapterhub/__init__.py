"""Import of AdapterHub adapters (library `adapters`, formerly `adapter-transformers`), without that library."""

from __future__ import annotations

from adapter_export.plugins.formats.importers.adapterhub.adapterhub_importer import import_adapterhub

__all__ = ["import_adapterhub"]
