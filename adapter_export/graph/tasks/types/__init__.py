"""The task types: each module of this folder, or that a plug-in adds to `task_types`, defines one as `TYPE`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from itertools import chain

from adapter_export.graph.tasks.task_type import TaskFacts, TaskType
from adapter_export.plugin import first_of_each, part_modules


def _types() -> Iterator[TaskFacts]:
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    yield from (module.TYPE for module in chain(modules, part_modules("task_types")))


TASK_TYPES: Mapping[str, TaskFacts] = first_of_each("task type", ((facts.name, facts) for facts in _types()))
"""All task types by name."""

HEAD_TYPES: Mapping[str, TaskType] = {name: found for name, found in TASK_TYPES.items() if isinstance(found, TaskType)}
"""The task types that heads answer, by name."""
