"""Where an interrupted run goes on: one safetensors file, its numbers as JSON in the file's own metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from adapter_export.dtypes import Weights
from adapter_export.errors import TrainingError
from adapter_export.format.files import new_file
from adapter_export.torch.objectives import Scores
from adapter_export.torch.progress import EpochRecord

CHECKPOINT_FILE = "checkpoint.safetensors"

_GROUPS = ("weights", "first_moments", "second_moments", "best")
_NUMBERS = ("step", "step_in_epoch", "loss_sum", "seconds", "best_epoch")


@dataclass
class RunState:
    """All that a run knows between two steps.

    Randomness is not in it: each step and each epoch draws from a generator of its own, seeded by its number.

    Attributes:
        step: how many steps are done.
        step_in_epoch: how many of them in the present epoch.
        loss_sum: the summed loss of the present epoch's rows so far.
        seconds: how long the present epoch has taken so far.
        history: the finished epochs.
        best_epoch: the best of them, counted from 1; 0 before the first.
        weights: the adapter's tensors.
        first_moments: the optimizer's running mean of the gradients.
        second_moments: the optimizer's running mean of their squares.
        best: the tensors after the best epoch.
    """

    step: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    weights: Weights = field(default_factory=dict)
    first_moments: Weights = field(default_factory=dict)
    second_moments: Weights = field(default_factory=dict)
    best: Weights = field(default_factory=dict)


def write_checkpoint(state: RunState, digest: str, path: Path) -> None:
    """Write a state; at every moment `path` holds one whole checkpoint, the old or the new.

    Args:
        state: the state.
        digest: what tells this run from others; see `read_checkpoint`.
        path: the file.

    Raises:
        WriteError: the operating system refused; the checkpoint before is still there.
    """
    groups: dict[str, Weights] = {name: getattr(state, name) for name in _GROUPS}
    tensors = {f"{group}/{name}": tensor for group, found in groups.items() for name, tensor in found.items()}
    numbers = {name: getattr(state, name) for name in _NUMBERS}
    numbers["history"] = [asdict(record) for record in state.history]
    with new_file(path, force=True) as temporary:
        temporary.write_bytes(save(tensors, {"digest": digest, "state": json.dumps(numbers)}))


def read_checkpoint(path: Path, digest: str) -> RunState | None:
    """Read a state; `None` if there is no checkpoint.

    Args:
        path: the file.
        digest: that of the run that wants to go on.

    Raises:
        TrainingError: the file is damaged, or of a run with other data, settings or first weights.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if metadata["digest"] == digest:
            return _state(json.loads(metadata["state"]), tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            "the checkpoint is damaged", where=path, found=error, fix="delete it, or give `--restart` to start anew"
        ) from error
    raise TrainingError(
        "an interrupted run with other data, settings or weights lies here",
        where=path,
        fix="repeat its settings to go on with it, or give `--restart` to start anew",
    )


def _state(numbers: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> RunState:
    epochs = [
        EpochRecord(**{**record, "validation": Scores(**record["validation"])}) for record in numbers.pop("history")
    ]
    groups: dict[str, Weights] = {group: {} for group in _GROUPS}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups[group][name] = tensor
    return RunState(**{**numbers, **groups, "history": epochs})
