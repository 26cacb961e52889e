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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiers import extended

import adapter_export

PACKAGE = Path(adapter_export.__file__).parent

RUNNER = """
import contextlib, io, json, os, sys
from click.testing import CliRunner

replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever else is printed goes to stderr
for line in sys.stdin:
    program, arguments = json.loads(line)
    if program is None:
        from adapter_export.cli.main import main
        done = CliRunner().invoke(main, arguments)
        code, out, err = done.exit_code, done.stdout, done.stderr
    else:
        sys.argv, own, code, err = ["", *arguments], io.StringIO(), 0, ""
        with contextlib.redirect_stdout(own):
            exec(program, {"__name__": "__main__"})
        out = own.getvalue()
    print(json.dumps([code, out, err]), file=replies, flush=True)
"""
"""Runs programs and commands of the changed package, one after the other, so that torch is imported once."""


class TrialChange:
    """A copy of the package with a change.

    Attributes:
        folder: holds the copy, and is where its commands run.
        touched: the files that were added or edited, relative to the package.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.touched: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))

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
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _run(self, program: str | None, *arguments: object) -> str:
        words = [str(argument) for argument in arguments]
        if self._process is None:
            pipe, env = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(self.folder)}
            self._process = subprocess.Popen(
                [sys.executable, "-c", RUNNER], cwd=self.folder, env=env, stdin=pipe, stdout=pipe, text=True
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([program, words]) + "\n")
        process.stdin.flush()
        reply = process.stdout.readline()
        assert reply, f"the process ended at {words}; its traceback is on stderr"
        code, out, err = json.loads(reply)
        assert code == 0, f"{words} ended with {code}:\n{out}\n{err}"
        return str(out)


@pytest.fixture
@extended
def trial(tmp_path: Path) -> Iterator[TrialChange]:
    """A copy of the package, still without a change."""
    change = TrialChange(tmp_path)
    yield change
    change.close()
