"""The small encoder as a base, and training runs of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ended_training
import pytest
from once import once
from small_encoder import load_encoder, save_encoder
from small_task import review_data
from tiers import extended

from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.training.loop.data import TrainingData


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> TorchBase:
    """The small encoder; do not change it."""
    return load_encoder(tmp_path_factory.mktemp("base") / "model.pt")


@pytest.fixture(scope="session")
def data(base: TorchBase) -> TrainingData:
    """Rows that it can learn."""
    return review_data(base)


@pytest.fixture(scope="session")
@extended
def ended_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `model.pt`, and the results of runs killed at steps 5 and 16 and of one without memory."""

    def make(folder: Path) -> None:
        archive = save_encoder(folder / "model.pt")
        command = [sys.executable, ended_training.__file__, archive, folder, 5, 16]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "ended_runs", make)
