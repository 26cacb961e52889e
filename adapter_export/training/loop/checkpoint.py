"""Checkpoints: the state of a run between two steps, in one file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from adapter_export.dtypes import Weights
from adapter_export.errors import FormatError, TrainingError
from adapter_export.format.tensors import metadata_of, parse_tensors
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_bytes
from adapter_export.torch_backend.attach import AdaptedModel
from adapter_export.training.loop.data import TrainingData
from adapter_export.training.loop.record import EpochRecord
from adapter_export.training.loop.settings import LoopSpec
from adapter_export.training.objectives.objective import Scores
from adapter_export.words import argument

CHECKPOINT_FILE = "checkpoint.safetensors"
"""Tensors of a run, and its numbers as JSON in the file's metadata."""

_GROUPS = ("weights", "first_moments", "second_moments", "updates", "best")
_NUMBERS = ("step", "step_in_epoch", "loss_sum", "seconds", "best_epoch", "scaler", "losses")

Identity = dict[str, Any]
"""Facts that identify a run, by name; two runs are the same if all are equal."""


@dataclass
class RunState:
    """State of a run between two steps.

    Loss and seconds are sums over the current epoch; `best_epoch` counts from 1, 0 before the first. There is no random
    state: each step and each epoch uses a separate generator, seeded by its number.

    Attributes:
        losses: loss of each step.
        updates: number of updates of each tensor; smaller than the steps if layers are dropped.
        scaler: state of the gradient scaler for float16; empty in other precisions.
    """

    step: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    losses: list[float] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    first_moments: Weights = field(default_factory=dict)
    second_moments: Weights = field(default_factory=dict)
    updates: Weights = field(default_factory=dict)
    best: Weights = field(default_factory=dict)


def run_identity(model: AdaptedModel, data: TrainingData, settings: LoopSpec) -> Identity:
    """Return the facts that identify a run: base, initial weights, trained tensors, labels, rows and settings.

    A run may be resumed with another limit of its time.
    """
    adapter = model.adapter
    weights = hashlib.sha256()
    for name, tensor in model.tensors().items():
        weights.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    graphs = repr((adapter and adapter.graphs, adapter and adapter.head, model.sites, list(model.learned())))
    task = adapter and adapter.head and adapter.head.task
    return {
        "base": model.base.fingerprint,
        "padding": model.pads,
        # a run that was interrupted may get another limit of time
        **{name: value for name, value in asdict(settings).items() if name != "max_minutes"},
        "labels": list(task.labels) if task else [],
        "training rows": data.training.fingerprint,
        "validation rows": data.validation.fingerprint,
        "graphs": hashlib.sha256(graphs.encode()).hexdigest(),
        "first weights": weights.hexdigest(),
    }


def difference(found: Identity, expected: Identity) -> dict[str, str]:
    """Return the first fact in which two runs differ, as the arguments of an error; digests are not quoted."""
    name = next(name for name in {**expected, **found} if found.get(name) != expected.get(name))
    one, other = (" ".join(json.dumps(each.get(name)).split()) for each in (found, expected))
    quoted = name in LoopSpec.__dataclass_fields__ or name == "labels"
    return {"found": f"`{name}` {one}", "expected": other} if quoted else {"found": f"different {name}"}


def write_checkpoint(state: RunState, identity: Identity, path: Path) -> None:
    """Write the state of a run; `path` always contains a complete checkpoint, old or new."""
    tensors = {f"{group}/{name}": tensor for group in _GROUPS for name, tensor in getattr(state, group).items()}
    numbers = {name: getattr(state, name) for name in _NUMBERS}
    numbers["history"] = [asdict(record) for record in state.history]
    with Output(path, force=True).file() as temporary:
        temporary.write_bytes(save(tensors, {"run": json.dumps(identity), "state": json.dumps(numbers)}))


def read_checkpoint(path: Path, identity: Identity) -> RunState | None:
    """Read the state of a run, if there is a checkpoint.

    Raises:
        TrainingError: the file is damaged, or belongs to another run: other data, labels, settings or initial weights.
    """
    if not path.exists():
        return None
    anew = "pass " + argument("restart", True) + " to start over"

    def damaged(reason: str) -> TrainingError:
        return TrainingError("the checkpoint is damaged", where=path, found=reason, fix="delete it, or " + anew)

    data = read_bytes(path)
    try:
        tensors = parse_tensors(data, path)
    except FormatError as error:
        raise damaged(error.message) from error
    with parsing(damaged):
        metadata = metadata_of(data, path)
        # through JSON, in which tuples are lists
        recorded, expected = json.loads(metadata["run"]), json.loads(json.dumps(identity))
        numbers = json.loads(metadata["state"])
        history = [
            EpochRecord(**{**record, "validation": Scores(**record["validation"])}) for record in numbers.pop("history")
        ]
        groups: dict[str, Weights] = {group: {} for group in _GROUPS}
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
        state = RunState(**{**numbers, **groups, "history": history})
    if not isinstance(recorded, dict):
        raise damaged("its run is not an object")
    if recorded != expected:
        raise TrainingError(
            "there is an interrupted run with other data, settings or weights",
            where=path,
            **difference(recorded, expected),
            fix="repeat its original arguments to resume it, or " + anew,
        )
    return state
