"""Trial changes: a copy of the package in which some files are added or edited, and its commands.

Each row of the locality table in CONTRIBUTING.md has a test that makes such a change and takes the result through the
real commands. The test lists the files that it touches, so it fails if another file of the package must change, too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import adapter_export

PACKAGE = Path(adapter_export.__file__).parent


class TrialChange:
    """A copy of the package with a change.

    Attributes:
        folder: holds the copy, and is where its commands run.
        touched: the files that were added or edited, relative to the package.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.touched: list[str] = []
        shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))

    def add(self, path: str, text: str) -> None:
        """Add a file to the package; `path` is relative to it."""
        file = self.folder / PACKAGE.name / path
        assert not file.exists(), f"{path} is already there"
        file.write_text(text, encoding="utf-8")
        self.touched.append(path)

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace the one occurrence of `old` in a file of the package."""
        file = self.folder / PACKAGE.name / path
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{path} has {text.count(old)} places such as {old!r}"
        file.write_text(text.replace(old, new), encoding="utf-8")
        if path not in self.touched:
            self.touched.append(path)

    def python(self, program: str, *arguments: object) -> str:
        """Run a Python program with the changed package; return its stdout."""
        return self._run("-c", program, *arguments)

    def command(self, *arguments: object) -> str:
        """Run a command of the changed package, which must succeed; return its stdout."""
        return self._run("-m", PACKAGE.name, *arguments)

    def json(self, *arguments: object) -> Any:
        """Run a command with `--json` and return its document."""
        return json.loads(self.command(*arguments, "--json"))

    def _run(self, *arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def trial(tmp_path: Path) -> TrialChange:
    """A copy of the package, still without a change."""
    return TrialChange(tmp_path)
