"""Modalities of rows. Each module of this folder but the base, or that a plug-in adds to `modalities`, defines one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from itertools import chain

from adapter_export.modalities.modality import FileModality, Modality, Step
from adapter_export.plugin import first_of_each, part_modules


def _discover() -> Mapping[str, Modality]:
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    defined = (getattr(module, "MODALITY", None) for module in chain(modules, part_modules("modalities")))
    named = ((modality.name, modality) for modality in defined if isinstance(modality, Modality))
    return first_of_each("modality", named)


MODALITIES: Mapping[str, Modality] = _discover()
"""All modalities by name."""

FILE_MODALITIES: Mapping[str, FileModality] = {
    name: one for name, one in MODALITIES.items() if isinstance(one, FileModality)
}
"""Modalities whose rows are files."""

INPUTS: tuple[str, ...] = ("text", *(name for one in MODALITIES.values() for name in one.inputs if name != "text"))
"""The inputs that tasks may have."""

STEPS: tuple[type[Step], ...] = tuple(step for one in FILE_MODALITIES.values() for step in one.steps)
"""The steps of all modalities."""
