"""Names of task types, without the types: each file in `tasks/types/` is one, and importing it needs NumPy."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapter_export.plugin import plugins

CAUSAL_LM = "causal_lm"
"""Language modelling: the base itself predicts the next token, so it has no head and no `Task`."""

DEFAULT_TYPE = "single_label"
"""The type that is trained by default."""

RETRIEVAL = "retrieval"
"""Pairs without labels, which `embedding` learns and is judged by; tasks record it as `embedding`."""

_MODULES = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "tasks" / "types")])]
_MODULES += [path.rpartition(".")[2] for plugin in plugins().values() for path in plugin.parts.get("task_types", ())]

LEARNT: tuple[str, ...] = (
    DEFAULT_TYPE,
    *(name for name in dict.fromkeys(_MODULES) if name not in (DEFAULT_TYPE, RETRIEVAL)),
)
"""The names of all types that a training can be asked for."""

PROBLEM_TYPES: tuple[str, ...] = tuple(name for name in LEARNT if name != CAUSAL_LM)
"""The names of the types that heads answer."""

if TYPE_CHECKING:
    ProblemType = str
    Learnt = str
else:  # records, schemas and the command line take their choices from these hints
    ProblemType = Literal[PROBLEM_TYPES]
    Learnt = Literal[LEARNT]
