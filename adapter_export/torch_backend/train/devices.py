"""The device, the precision, the processes and the trackers of a run: those of accelerate."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import ProjectConfiguration

from adapter_export.errors import UsageError, argument, quoted

_HALF = "fp16"


@dataclass(frozen=True)
class Engine:
    """Where and how a run computes, and who follows it.

    Attributes:
        device: such as `cpu`, `cuda`, `cuda:1`; the best one there is if not given.
        precision: `no`, `bf16` or `fp16`; what `accelerate launch` says, or `no`, if not given.
        log_to: names of trackers.
        logs: the folder of those that write files.

    Raises:
        UsageError: a device or a tracker that is not there, or a precision that the device does not have.
    """

    device: str | None = None
    precision: str | None = None
    log_to: tuple[str, ...] = ()
    logs: Path = Path()

    def __post_init__(self) -> None:
        for name in self.log_to:
            if name not in LOGGER_TYPE_TO_CLASS:
                expected = quoted(LOGGER_TYPE_TO_CLASS)
                raise UsageError("accelerate knows no such tracker", found=f"`{name}`", expected=expected)
            if name not in map(str, get_available_trackers()):
                fix = f"run `pip install {name}`"
                raise UsageError(f"the tracker `{name}` is not installed", where=argument("log_to"), fix=fix)
        if self._chosen.type == "cpu" and self.precision == _HALF:
            raise UsageError(
                "float16 is for GPUs: a processor does not scale its gradients",
                where=argument("precision", _HALF),
                fix=f"give {argument('precision', 'bf16')}, or another {argument('device')}",
            )

    @property
    def _chosen(self) -> torch.device:
        best = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        if self.device is None:
            return best
        there = ["cpu"]
        if best.type != "cpu":
            there += [best.type, *(f"{best.type}:{index}" for index in range(torch.accelerator.device_count()))]
        if self.device not in there:
            expected = quoted(there)
            raise UsageError("the device is not there", where=argument("device", self.device), expected=expected)
        chosen = torch.device(self.device)
        if chosen.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            fix = f"give {argument('device', chosen.type)}"
            raise UsageError("each of several processes takes a device of its own", found=f"`{self.device}`", fix=fix)
        return chosen

    @property
    def first(self) -> bool:
        """Whether this is the first of the processes of `torchrun`, which alone speaks and writes."""
        return os.environ.get("RANK", "0") == "0"

    @contextmanager
    def open(self) -> Iterator[Accelerator]:
        """Prepare a run, and end it with its trackers; an accelerator of the calling program is as it was before.

        Raises:
            UsageError: the program has a group of processes on another device.
        """
        chosen = self._chosen
        if chosen.index is not None:
            torch.accelerator.set_device_index(chosen.index)
        with _fresh_state():
            accelerator = Accelerator(
                cpu=chosen.type == "cpu",
                mixed_precision=self.precision,
                log_with=list(self.log_to) or None,
                project_config=ProjectConfiguration(logging_dir=str(self.logs)),
            )
            if accelerator.device.type != chosen.type:
                raise UsageError(
                    "the program has processes on another device",
                    found=f"`{accelerator.device}`",
                    expected=f"`{chosen}`",
                    fix=f"give {argument('device', accelerator.device.type)}",
                )
            try:
                yield accelerator
            finally:
                for tracker in accelerator.trackers:
                    tracker.finish()


@contextmanager
def _fresh_state() -> Iterator[None]:
    """Let accelerate begin anew: its precision, device and accumulation are one for all accelerators of a program.

    A group of processes stays, because torch cannot make a second one in the place of the first.
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
            atexit.register(torch.distributed.destroy_process_group)
