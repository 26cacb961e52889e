"""Libraries that read each file modality.

Each module `…_processor.py` of this folder, or that a plug-in adds to `processors`, defines one as `LIBRARY`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from itertools import chain

from adapter_export.plugin import first_of_each, part_modules
from adapter_export.torch_backend.processors.processor import ProcessorLibrary

_SUFFIX = "_processor"


def _discover() -> Mapping[str, ProcessorLibrary]:
    names = [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__) if module.name.endswith(_SUFFIX)]
    modules = chain(map(importlib.import_module, names), part_modules("processors"))
    named = ((module.__name__.rpartition(".")[2].removesuffix(_SUFFIX), module.LIBRARY) for module in modules)
    return first_of_each("processor", named)


LIBRARIES: Mapping[str, ProcessorLibrary] = _discover()
"""Libraries by modality."""
