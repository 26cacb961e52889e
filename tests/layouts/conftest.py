"""A small bundle with a tokenizer, and a Python with the servers and clients of others beside the slim runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from once import once
from small_bundle import build_small, small_tokenizer
from toolchain import skip_or_fail

STAGE = Path(__file__).parents[2] / "packages" / "runtime" / "stage.py"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`topic`, `tone` and `mood`, in the flavours that there are by default."""

    def make(folder: Path) -> None:
        build_small(folder, None, ("input_ids", "attention_mask"), small_tokenizer())

    return once(tmp_path_factory, "to_ship", make) / "bundle"


@pytest.fixture(scope="session")
def slim(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a program that imports `adapter_export_runtime`."""

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, STAGE, folder / "source"], check=True)

    source = once(tmp_path_factory, "slim", make) / "source"
    return {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="session")
def platform_python() -> str:
    """A Python with KServe's server and Triton's client, which want an older protobuf than the others."""
    python = Path(sys.prefix) / "kserve" / "bin" / "python"
    if not python.exists():
        skip_or_fail("KServe and Triton's client are missing: run `make setup`")
    return str(python)
