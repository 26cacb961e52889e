"""Training runs that are ended from outside: killed at a step, or left without memory.

python ended_training.py ARCHIVE FOLDER STEP…     the runs are forks of a process that has loaded torch once

FOLDER gets `killed`, the checkpoints of a run that goes on after each kill, and `memory.txt`, what the last run says.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from small_task import prepared, review_data

from adapter_export.dtypes import Weights
from adapter_export.errors import TrainingError
from adapter_export.reporting import Reporter
from adapter_export.torch_backend.base.torch_base import load_base
from adapter_export.training.loop.data import TrainingData
from adapter_export.training.loop.settings import LoopSpec
from adapter_export.training.loop.train_loop import train

_SPARE = 2**26
"""The bytes that a run without memory may still take."""


class Fatal(Reporter):
    """Kills the process after a number of steps of the whole run, as a power cut would."""

    def __init__(self, step: int) -> None:
        self.last = step

    def measure(self, values: Mapping[str, float], step: int) -> None:
        if "training/loss" in values and step == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def run(archive: Path, checkpoints: Path, step: int = 0) -> Weights:
    """The weights at the end, with one thread, on which the last bit may depend."""
    torch.set_num_threads(1)
    base = load_base(archive)
    model = prepared(base, dropout=0.3)
    settings = LoopSpec(epochs=3, batch_size=8, checkpoint_steps=3, learning_rate=0.01)
    train(model, review_data(base), settings, reporter=Fatal(step), checkpoints=checkpoints)
    return model.to_adapter().weights


def run_without_memory(archive: Path, said: Path) -> None:
    """Train on rows that do not fit, and write the error."""
    base = load_base(archive)
    data = review_data(base)
    rows = data.training.only(np.repeat(np.arange(60), 500))
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + _SPARE, resource.RLIM_INFINITY))
    settings = LoopSpec(epochs=2, batch_size=30_000, learning_rate=0.01, cache_mb=0)
    try:
        train(prepared(base), TrainingData(rows, rows), settings)
    except TrainingError as error:
        said.write_text(str(error))


def _forked(work: Callable[[], object]) -> int:
    """The exit code of a fork that does some work."""
    child = os.fork()
    if not child:
        work()
        sys.exit()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    archive, folder = Path(sys.argv[1]), Path(sys.argv[2])
    codes = [_forked(lambda step=step: run(archive, folder / "killed", step)) for step in map(int, sys.argv[3:])]
    codes.append(_forked(lambda: run_without_memory(archive, folder / "memory.txt")))
    if codes != [-signal.SIGKILL] * len(sys.argv[3:]) + [0]:
        sys.exit(f"ended with {codes}")
