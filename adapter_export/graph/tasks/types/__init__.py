"""The task types: each module of this folder defines one as `TYPE`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from adapter_export.graph.tasks.task_type import TaskFacts, TaskType


def _found() -> list[TaskFacts]:
    names = [one.name for one in pkgutil.iter_modules(__path__)]
    return [importlib.import_module(f"{__name__}.{name}").TYPE for name in names]


TASK_TYPES: Mapping[str, TaskFacts] = {found.name: found for found in _found()}
"""All task types by name."""

HEAD_TYPES: Mapping[str, TaskType] = {name: found for name, found in TASK_TYPES.items() if isinstance(found, TaskType)}
"""The task types that heads answer, by name."""
