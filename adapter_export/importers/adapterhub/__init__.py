"""Adapters of AdapterHub (the library `adapters`, once `adapter-transformers`); none of it needs that library."""

from __future__ import annotations

from adapter_export.importers.adapterhub.adapterhub_importer import import_adapterhub

__all__ = ["import_adapterhub"]
