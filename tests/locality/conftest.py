"""Trial changes: a copy of the package in which some files are added or edited, and its commands.

Each row of the locality table in CONTRIBUTING.md has a test that makes such a change and takes the result through the
real commands. The test lists the files that it touches, so it fails if another file of the package must change, too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiers import extended
from trial_process import TrialProcess

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
        self._process: TrialProcess | None = None
        # compiled modules stay valid: the copy has the times of the sources
        shutil.copytree(PACKAGE, folder / PACKAGE.name)

    def add(self, path: str, text: str) -> None:
        """Add a file to the package; `path` is relative to it."""
        self.close()
        file = self.folder / PACKAGE.name / path
        assert not file.exists(), f"{path} is already there"
        file.write_text(text, encoding="utf-8")
        self.touched.append(path)

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace the one occurrence of `old` in a file of the package."""
        self.close()
        file = self.folder / PACKAGE.name / path
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{path} has {text.count(old)} places such as {old!r}"
        file.write_text(text.replace(old, new), encoding="utf-8")
        if path not in self.touched:
            self.touched.append(path)

    def python(self, program: str, *arguments: object) -> str:
        """Run a Python program with the changed package; return its stdout."""
        return self._run(program, *arguments)

    def command(self, *arguments: object) -> str:
        """Run a command of the changed package, which must succeed; return its stdout."""
        return self._run(None, *arguments)

    def json(self, *arguments: object) -> Any:
        """Run a command with `--json` and return its document."""
        return json.loads(self.command(*arguments, "--json"))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _run(self, program: str | None, *arguments: object) -> str:
        words = [str(argument) for argument in arguments]
        if self._process is None:
            self._process = TrialProcess(self.folder)
        code, out, err = self._process.call(program, words)
        assert code == 0, f"{words} ended with {code}:\n{out}\n{err}"
        return out


@pytest.fixture
@extended
def trial(tmp_path: Path) -> Iterator[TrialChange]:
    """A copy of the package, still without a change."""
    change = TrialChange(tmp_path)
    yield change
    change.close()
