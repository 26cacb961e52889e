"""A small bundle with a tokenizer, and a Python with the servers and clients of others beside the slim runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from once import once
from small_bundle import text_bundle
from toolchain import skip_or_fail

STAGE = Path(__file__).parents[2] / "packages" / "runtime" / "stage.py"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`topic`, `tone` and `mood`, in the flavours that there are by default."""
    return text_bundle(tmp_path_factory)


@pytest.fixture(scope="session")
def slim(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a program that imports `adapter_export_runtime`."""

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, STAGE, folder / "source"], check=True)

    places = [str(once(tmp_path_factory, "slim", make) / "source"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="session")
def platform_python() -> str:
    """A Python with KServe's server and Triton's client, which want an older protobuf than the others."""
    python = Path(sys.prefix) / "kserve" / "bin" / "python"
    if not python.exists():
        skip_or_fail("KServe and Triton's client are missing: run `make setup`")
    return str(python)
