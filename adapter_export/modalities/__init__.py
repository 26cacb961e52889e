"""Modalities of rows. Each module of this folder but the base defines one as `MODALITY`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from adapter_export.modalities.modality import FileModality, Modality, Step


def _found() -> Mapping[str, Modality]:
    modules = (importlib.import_module(f"{__name__}.{one.name}") for one in pkgutil.iter_modules(__path__))
    found: list[Modality] = [module.MODALITY for module in modules if hasattr(module, "MODALITY")]
    return {one.name: one for one in found}


MODALITIES: Mapping[str, Modality] = _found()
"""All modalities by name."""

FILE_MODALITIES: Mapping[str, FileModality] = {
    name: one for name, one in MODALITIES.items() if isinstance(one, FileModality)
}
"""Modalities whose rows are files."""

INPUTS: tuple[str, ...] = ("text", *(name for one in MODALITIES.values() for name in one.inputs if name != "text"))
"""The inputs that tasks may have."""

STEPS: tuple[type[Step], ...] = tuple(step for one in FILE_MODALITIES.values() for step in one.steps)
"""The steps of all modalities."""
