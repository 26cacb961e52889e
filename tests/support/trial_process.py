"""Processes that run commands of a changed copy of the package.

They are forked from a server that has imported the libraries, but nothing of the package: a command of a new process
would spend most of its time on imports.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import sys
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

_LIBRARIES = ("torch", "torch.export", "torch.onnx", "transformers", "onnxscript", "onnxruntime", "click.testing")
"""Libraries that most commands import."""


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_LIBRARIES, __name__])
    return context


class TrialProcess:
    """A process that runs programs and commands of a package, one after the other.

    Args:
        folder: holds the package, and is where its commands run.
    """

    def __init__(self, folder: Path) -> None:
        self._own, theirs = multiprocessing.Pipe()
        self._process = _context().Process(target=_answer, args=(theirs, folder), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, program: str | None, arguments: list[str]) -> tuple[int, str, str]:
        """Run a Python program, or the command line if it is `None`; return the exit code, stdout and stderr."""
        self._own.send((program, arguments))
        try:
            code, out, err = self._own.recv()
        except EOFError as error:
            raise AssertionError(f"the process ended at {arguments}; its traceback is on stderr") from error
        return code, out, err

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._own.close()


def _answer(calls: Connection, folder: Path) -> None:
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)  # of the programs that commands start
    assert "adapter_export" not in sys.modules
    while True:
        try:
            program, arguments = calls.recv()
        except EOFError:
            return
        calls.send(_run(program, arguments))


def _run(program: str | None, arguments: list[str]) -> tuple[int, str, str]:
    if program is None:
        from click.testing import CliRunner

        from adapter_export.cli.main import main

        done = CliRunner().invoke(main, arguments)
        return done.exit_code, done.stdout, done.stderr
    sys.argv, out = ["", *arguments], io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(program, {"__name__": "__main__"})  # noqa: S102 # a program of the tests
    return 0, out.getvalue(), ""
