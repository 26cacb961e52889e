"""Objectives of task types.

Each module `…_loss.py` of this folder, or that a plug-in adds to `objectives`, defines one as `OBJECTIVE`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from itertools import chain

from adapter_export.plugin import first_of_each, part_modules
from adapter_export.training.objectives.objective import Objective

_SUFFIX = "_loss"


def _discover() -> Mapping[str, Objective]:
    names = [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__) if module.name.endswith(_SUFFIX)]
    modules = chain(map(importlib.import_module, names), part_modules("objectives"))
    named = ((module.__name__.rpartition(".")[2].removesuffix(_SUFFIX), module.OBJECTIVE) for module in modules)
    return first_of_each("objective", named)


OBJECTIVES: Mapping[str, Objective] = _discover()
"""Objectives by task type."""
