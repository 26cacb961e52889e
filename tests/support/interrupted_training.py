"""A training run in one process after the other, each of which kills itself at a step.

python interrupted_training.py ARCHIVE CHECKPOINTS STEP…     the processes are forks: torch is loaded once
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from small_task import prepared, review_data

from adapter_export.dtypes import Weights
from adapter_export.torch_backend.base.torch_base import load_base
from adapter_export.torch_backend.train.record import Silent, StepRecord, TrainingSettings
from adapter_export.torch_backend.train.train_loop import train


class Fatal(Silent):
    """Kills the process after a number of steps of the whole run, as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.done = 0

    def started(self, steps: int, done: int) -> None:
        self.done = done

    def stepped(self, record: StepRecord) -> None:
        self.done += 1
        if self.done == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(archive: Path, checkpoints: Path, step: int = 0) -> Weights:
    """The weights at the end, with one thread, on which the last bit may depend."""
    torch.set_num_threads(1)
    base = load_base(archive)
    model = prepared(base, dropout=0.3)
    settings = TrainingSettings(epochs=3, batch_size=8, checkpoint_steps=3, learning_rate=0.01)
    train(model, review_data(base), settings, progress=Fatal(step), checkpoints=checkpoints)
    return model.to_adapter().weights


if __name__ == "__main__":
    for fatal in map(int, sys.argv[3:]):
        child = os.fork()
        if not child:
            run(Path(sys.argv[1]), Path(sys.argv[2]), fatal)
            sys.exit("it was not killed")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != -signal.SIGKILL:
            sys.exit(f"step {fatal}: ended with {code}")
