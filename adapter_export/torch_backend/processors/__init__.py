"""Libraries that read each file modality: each module `…_processor.py` defines one as `LIBRARY`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from adapter_export.torch_backend.processors.processor import ProcessorLibrary

_SUFFIX = "_processor"


def _found() -> Mapping[str, ProcessorLibrary]:
    names = [one.name for one in pkgutil.iter_modules(__path__) if one.name.endswith(_SUFFIX)]
    return {name.removesuffix(_SUFFIX): importlib.import_module(f"{__name__}.{name}").LIBRARY for name in names}


LIBRARIES: Mapping[str, ProcessorLibrary] = _found()
"""Libraries by modality."""
