"""Device, precision, processes and trackers of a run, managed by accelerate."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import ProjectConfiguration

from adapter_export.errors import UsageError
from adapter_export.training.loop.settings import Machine
from adapter_export.words import argument, quoted

_HALF = "fp16"


@dataclass(frozen=True)
class Engine:
    """Prepares accelerate for a machine; without a precision, that of `accelerate launch` applies.

    Attributes:
        machine: device, precision and trackers.
        logs: folder of trackers that write files.

    Raises:
        UsageError: the device or a tracker is not available, or the device does not support the precision.
    """

    machine: Machine = field(default_factory=Machine)
    logs: Path = Path("adapter-export.logs")

    def __post_init__(self) -> None:
        for name in self.machine.log_to:
            if name not in LOGGER_TYPE_TO_CLASS:
                expected = quoted(LOGGER_TYPE_TO_CLASS)
                raise UsageError("accelerate does not support this tracker", found=f"`{name}`", expected=expected)
            if name not in map(str, get_available_trackers()):
                fix = f"run `pip install {name}`"
                raise UsageError(f"the tracker `{name}` is not installed", where=argument("log_to"), fix=fix)
        if self._chosen.type == "cpu" and self.machine.precision == _HALF:
            raise UsageError(
                "float16 training needs a GPU: on the CPU, gradients are not scaled",
                where=argument("precision", _HALF),
                fix="pass " + argument("precision", "bf16") + ", or another " + argument("device"),
            )

    @property
    def _chosen(self) -> torch.device:
        best, wanted = torch.accelerator.current_accelerator(check_available=True), self.machine.device
        best = best or torch.device("cpu")
        if wanted is None:
            return best
        there = ["cpu"]
        if best.type != "cpu":
            there += [best.type, *(f"{best.type}:{index}" for index in range(torch.accelerator.device_count()))]
        if wanted not in there:
            expected = quoted(there)
            raise UsageError("the device does not exist", where=argument("device", wanted), expected=expected)
        chosen = torch.device(wanted)
        if chosen.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            fix = "pass " + argument("device", chosen.type)
            raise UsageError("each of several processes needs a separate device", found=f"`{wanted}`", fix=fix)
        return chosen

    @property
    def first(self) -> bool:
        """True in the first process of `torchrun`, the only one that reports and writes."""
        return os.environ.get("RANK", "0") == "0"

    @contextmanager
    def open(self) -> Iterator[Accelerator]:
        """Set threads, device and trackers for a block; an accelerator of the calling program is not changed.

        Raises:
            UsageError: the program has a group of processes on another device.
        """
        chosen = self._chosen
        if self.machine.threads is not None:
            torch.set_num_threads(self.machine.threads)
        if chosen.index is not None:
            torch.accelerator.set_device_index(chosen.index)
        with _fresh_state():
            accelerator = Accelerator(
                cpu=chosen.type == "cpu",
                mixed_precision=self.machine.precision,
                log_with=list(self.machine.log_to) or None,
                project_config=ProjectConfiguration(logging_dir=str(self.logs)),
            )
            if accelerator.device.type != chosen.type:
                raise UsageError(
                    "the program has processes on another device",
                    found=f"`{accelerator.device}`",
                    expected=f"`{chosen}`",
                    fix="pass " + argument("device", accelerator.device.type),
                )
            try:
                yield accelerator
            finally:
                for tracker in accelerator.trackers:
                    tracker.finish()


@contextmanager
def _fresh_state() -> Iterator[None]:
    """Reset accelerate for a block: all accelerators of a program share precision, device and accumulation.

    A group of processes is kept, because torch cannot replace it.
    """
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    states = (AcceleratorState, GradientState, *(() if grouped else (PartialState,)))
    before = [dict(state._shared_state) for state in states]
    for state in states:
        state._shared_state.clear()
    try:
        yield
    finally:
        for state, old in zip(states, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(old)
        if not grouped and torch.distributed.is_available() and torch.distributed.is_initialized():
            # only at the exit, because torch cannot replace the group for a later run
            atexit.register(torch.distributed.destroy_process_group)
