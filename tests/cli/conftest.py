"""What the tests of the commands have in common."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Runs `adapter-export` as a user would: another process, real streams, a real exit code.

    `folder` is where it runs; `file_size` is the most bytes that it may write to one file, as on a disk that fills up.
    """

    def call(
        *arguments: object, folder: Path | None = None, file_size: int | None = None, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        def limit() -> None:
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

        return subprocess.run(
            [sys.executable, "-m", "adapter_export", *map(str, arguments)],
            cwd=folder,
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": ""},
            preexec_fn=limit,
            timeout=300,
            check=False,
        )

    return call


def assert_refused(found: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Hold an error against its exit code and its words; a traceback is never one."""
    assert found.returncode == code, found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    for word in words:
        assert word in found.stderr
