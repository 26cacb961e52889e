"""Tasks of adapters: their record, types, answers and metrics.

A type is one file in `types/`; its loss is one file in `training/objectives/`.
"""

from __future__ import annotations

from adapter_export.graph.task_names import CAUSAL_LM, DEFAULT_TYPE, LEARNT, PROBLEM_TYPES, Learnt, ProblemType
from adapter_export.graph.tasks.task_record import CLASSES, OUTPUT_SHAPES, THRESHOLD, Task, head_result
from adapter_export.graph.tasks.task_type import PER_TOKEN, Activation, HeadOutput, TaskFacts, TaskType
from adapter_export.graph.tasks.types import HEAD_TYPES, TASK_TYPES

__all__ = [
    "CAUSAL_LM",
    "CLASSES",
    "DEFAULT_TYPE",
    "HEAD_TYPES",
    "LEARNT",
    "OUTPUT_SHAPES",
    "PER_TOKEN",
    "PROBLEM_TYPES",
    "TASK_TYPES",
    "THRESHOLD",
    "Activation",
    "HeadOutput",
    "Learnt",
    "ProblemType",
    "Task",
    "TaskFacts",
    "TaskType",
    "head_result",
]
