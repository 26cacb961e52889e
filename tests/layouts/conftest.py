"""A small bundle with a tokenizer, and a Python with the servers and clients of others beside the slim runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from once import once
from small_bundle import counted_bundle, text_bundle

STAGE = Path(__file__).parents[2] / "packages" / "runtime" / "stage.py"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`topic`, `tone` and `mood`, in the flavours that there are by default."""
    return text_bundle(tmp_path_factory)


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a base which padding changes, with a weighted fusion `fused`."""
    return counted_bundle(tmp_path_factory)


@pytest.fixture(scope="session")
def slim(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a program that imports `adapter_export_runtime`."""

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, STAGE, folder / "source"], check=True)

    places = [str(once(tmp_path_factory, "slim", make) / "source"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), "PYTHONDONTWRITEBYTECODE": "1"}
