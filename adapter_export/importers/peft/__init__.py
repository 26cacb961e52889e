"""Adapters of PEFT: LoRA and IA3; none of it needs that library."""

from __future__ import annotations

from adapter_export.importers.peft.importer import import_peft

__all__ = ["import_peft"]
