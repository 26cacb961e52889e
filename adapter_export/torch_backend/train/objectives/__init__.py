"""Objectives of task types. Each module `…_loss.py` of this folder defines one as `OBJECTIVE`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from adapter_export.torch_backend.train.objectives.objective import Objective

_SUFFIX = "_loss"


def _found() -> Mapping[str, Objective]:
    names = [one.name for one in pkgutil.iter_modules(__path__) if one.name.endswith(_SUFFIX)]
    return {name.removesuffix(_SUFFIX): importlib.import_module(f"{__name__}.{name}").OBJECTIVE for name in names}


OBJECTIVES: Mapping[str, Objective] = _found()
"""Objectives by task type."""
