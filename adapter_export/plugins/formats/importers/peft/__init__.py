"""Adapters of PEFT whose change of the weights is fixed; none of it needs that library."""

from __future__ import annotations

from adapter_export.plugins.formats.importers.peft.peft_importer import import_peft

__all__ = ["import_peft"]
